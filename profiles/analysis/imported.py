"""The summary of a run that others made: what their profiler's traces tell, all else null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .reasons import Null, nulls
from .statistics import spread
from .steps import ALL_PHASES
from .traces import mean_of

NOT_IN_A_TRACE = "a trace does not tell it"


def config_of(device: str | None) -> dict[str, Any]:
    """What run.json holds in place of a config: a trace tells the device alone."""
    unknown = ("strategy", "engine", "launcher", "nodes", "micro_batch", "grad_accumulation", "global_batch")
    more = ("checkpointing", "compile", "model")
    return {**dict.fromkeys((*unknown, *more)), "device": device, "probe": "off", "record_grad_norm": False}


def overlay(summary: dict[str, Any], rows: Sequence[Mapping[str, Any]], null: Null) -> dict[str, Any]:
    """`summary`, made of no records, with what `rows` (of `read_traces`) tell in its place.

    Steps are the profiler's, which it makes longer; times of a device are means over ranks, per step.
    """
    usable = [row for row in rows if row["unusable"] is None]
    steps = min((len(row["steps"]) for row in usable), default=0)
    seconds = [[step["seconds"] for step in row["steps"][:steps]] for row in usable]
    found = spread(np.mean(seconds, axis=0).tolist() if steps else [])
    for name, value in found.items():
        if value is None:
            why = f"{steps} profiled steps are too few" if steps else "the traces mark no step"
            null(f"step_seconds.{name}", why)
    return {
        **summary,
        "source": "imported",
        "steps": {**summary["steps"], "profiled": steps},
        "step_seconds": found,
        "phases": _phases(usable, steps, found["mean"], null),
        "comm": {**summary["comm"], **_comm(usable, steps, null)},
    }


def _per_step(rows: Sequence[Any], steps: int, name: str) -> float | None:
    """Seconds `name` of the ranks' first devices, per step, mean over ranks."""
    total = mean_of(rows, lambda row: row["devices"][0][name] if row["devices"] else None)
    return None if total is None or not steps else total / steps


def _phases(rows: Sequence[Any], steps: int, step_seconds: Any, null: Null) -> dict[str, Any]:
    why = "the traces do not mark the phases of a step"
    found: dict[str, Any] = {**nulls("phases", ALL_PHASES, why, null)}
    loading = mean_of(rows, _loading)
    known = {
        "comm_exposed": _per_step(rows, steps, "exposed_communication_seconds"),
        "data": None if loading is None or not steps else loading / steps,
    }
    if known["data"] is None:
        null("phases.data", "the traces show no DataLoader")
    for name, value in known.items():
        if value is not None and step_seconds:
            found[name] = {"mean": value, "median": None, "share": value / step_seconds}
            null(f"phases.{name}.median", "a trace is taken as a whole, not step by step")
        else:
            null(f"phases.{name}", "the traces mark no step")
    return found


def _loading(row: Mapping[str, Any]) -> float | None:
    """Seconds in which the device had nothing to do while the host was in a DataLoader."""
    if not row["devices"] or row["devices"][0]["idle"] is None:
        return None
    return row["devices"][0]["idle"]["loading_seconds"]


def _comm(rows: Sequence[Any], steps: int, null: Null) -> dict[str, Any]:
    parts = {
        "exposed_seconds": "exposed_communication_seconds",
        "overlapped_seconds": "overlapped_communication_seconds",
        "busy_seconds": "communication_seconds",
    }
    found = {name: _per_step(rows, steps, of) for name, of in parts.items()}
    for name, value in found.items():
        if value is None:
            null(f"comm.{name}", "the traces mark no step" if rows else "no trace could be used")
    return found
