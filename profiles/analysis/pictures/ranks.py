"""Where the step of each rank goes, of as many rows as a page can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROWS = 32
"""Bars that can be told apart on a page."""
SLOWEST_SHOWN = 8


def ranks(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Seconds of each phase by rank; of more than ROWS ranks, means of groups of neighbours, as ranks of one host are,
    and beside them the ranks with the most own time."""
    rows = [row for row in summary["per_rank"] or () if row["phases"] and row["step_seconds"] is not None]
    if not rows:
        return None
    size = -(-len(rows) // ROWS)
    groups = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
    order = sorted(rows, key=lambda row: -_own(row))
    return {
        "of": len(rows),
        "group_size": size,
        "rows": [_row(group) for group in groups],
        "slowest": [_row([row]) for row in order[:SLOWEST_SHOWN]] if size > 1 else [],
    }


def _own(row: Mapping[str, Any]) -> float:
    return row["step_seconds"] if row["own_seconds"] is None else row["own_seconds"]


def _row(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One bar: phases, and the rest of the step as `unattributed`, means over the group's ranks."""
    phases = {name: _mean([row["phases"][name] for row in group]) for name in group[0]["phases"]}
    step, own = _mean([row["step_seconds"] for row in group]), None
    if all(row["own_seconds"] is not None for row in group):
        own = _mean([row["own_seconds"] for row in group])
        phases["comm_exposed"] = step - own
    phases["unattributed"] = step - sum(phases.values())
    waiting = [row["waiting_seconds"] for row in group]
    hosts = sorted({row["host"] for row in group if row["host"] is not None})
    return {
        "first_rank": group[0]["rank"],
        "last_rank": group[-1]["rank"],
        "host": hosts[0] if len(hosts) == 1 else None,
        "hosts": len(hosts),
        "phases": phases,
        "step_seconds": step,
        "own_seconds": own,
        "waiting_seconds": None if None in waiting else _mean(waiting),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
