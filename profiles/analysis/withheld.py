"""What is left out of a summary whose run trained something else than it should: every figure of its speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .parity import PARITY
from .reasons import Null

# Sections whose numbers are all of time, or made of it.
SECTIONS = ("throughput", "step_seconds", "phases", "detail", "cost", "utilization")
# Of them, what was given or looked up, and what is counted.
NOT_OF_TIME = ("usd_per_gpu_hour", "usd_per_kwh", "peak", "useful_fraction")
# Sections that are there or not.
WHOLE = ("counterfactual", "overhead", "trace")
# Of the sections that tell more than time, what is of time or made of it.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "comm": (
        "busy_seconds",
        "overlapped_seconds",
        "exposed_seconds",
        "exposed_by_phase",
        "transfer_seconds",
        "waiting_seconds",
        "queued_seconds",
        "bus_bandwidth",
        "bus_bandwidth_share",
        "alone_seconds",
        "clock_residual_seconds",
        "straggler",
    ),
    "quality": ("seconds_to_target", "usd_to_target"),
    "memory": ("timeline",),
}
# The same of each row of a list.
ROWS: Mapping[str, tuple[str, ...]] = {
    "per_rank": ("phases", "step_seconds", "own_seconds", "waiting_seconds"),
    "events": ("seconds",),
}


def is_withheld(status: Mapping[str, Any]) -> bool:
    """Whether `status` says that losses left the tolerance."""
    return str(status.get("cause") or "").startswith(PARITY)


def withheld(summary: Mapping[str, Any], status: Mapping[str, Any], null: Null) -> dict[str, Any]:
    """`summary` without figures of speed where losses left the tolerance; else as it is."""
    if not is_withheld(status):
        return dict(summary)
    cause = str(status["cause"])
    found: dict[str, Any] = dict(summary)

    def without(part: Mapping[str, Any], names: tuple[str, ...], path: str) -> dict[str, Any]:
        for name in names:
            null(f"{path}.{name}", cause)
        return {**part, **dict.fromkeys(names)}

    for name in WHOLE:
        found[name] = None
        null(name, cause)
    for name in SECTIONS:
        numbers = tuple(
            key for key, value in found[name].items() if not isinstance(value, str) and key not in NOT_OF_TIME
        )
        found[name] = without(found[name], numbers, name)
    for name, fields in FIELDS.items():
        found[name] = without(found[name], fields, name)
    for name, fields in ROWS.items():
        found[name] = [without(row, fields, name) for row in found[name]]
    found["memory"] = _untimed(found["memory"], null, cause)
    return found


def _untimed(memory: Mapping[str, Any], null: Null, cause: str) -> dict[str, Any]:
    """`memory` without the instants of its peaks."""

    def placed(row: Mapping[str, Any], path: str) -> dict[str, Any]:
        if row["peak_at"] is None:
            return dict(row)
        null(f"{path}.peak_at.seconds", cause)
        return {**row, "peak_at": {**row["peak_at"], "seconds": None}}

    rows = [placed(row, "memory.per_rank") for row in memory["per_rank"]]
    return {**placed(memory, "memory"), "per_rank": rows}
