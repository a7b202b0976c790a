"""The summary of a run that others made: what their profiler's traces tell, all else null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .reasons import Null, nulls
from .statistics import spread
from .steps import ALL_PHASES
from .traces import CUT, device_mean, whole

NOT_IN_A_TRACE = "a trace does not tell it"


def config_of(device: str | None) -> dict[str, Any]:
    """What run.json holds in place of a config: a trace tells the device alone."""
    unknown = ("strategy", "engine", "launcher", "nodes", "micro_batch", "grad_accumulation", "global_batch")
    more = ("checkpointing", "compile", "model")
    return {**dict.fromkeys((*unknown, *more)), "device": device, "probe": "off", "record_grad_norm": False}


def overlay(summary: dict[str, Any], rows: Sequence[Mapping[str, Any]], null: Null) -> dict[str, Any]:
    """`summary`, made of no records, with what `rows` (of `read_traces`) tell in its place: times per step of the
    profiler, which makes them longer, mean over ranks."""
    usable = whole(rows)
    seconds = _step_seconds(usable)
    steps = len(seconds)
    found = spread(seconds)
    for name, value in found.items():
        if value is None:
            why = f"too few profiled steps ({steps})" if steps else "the traces mark no step that all ranks share"
            null(f"step_seconds.{name}", why if usable else CUT)
    profiled: dict[str, int | None] = {**nulls("steps", summary["steps"], NOT_IN_A_TRACE, null)}
    if usable:
        profiled["profiled"] = steps
    else:
        null("steps.profiled", CUT)
    comm = nulls("comm", summary["comm"], NOT_IN_A_TRACE, null)
    mean, why = device_mean(usable)
    exposed = None if mean is None else mean["exposed_communication_seconds"]
    null("comm.exposed_seconds", why)
    for name in ("busy_seconds", "overlapped_seconds"):
        # A kernel of a collective also runs while it waits for a late rank, which is not the wire.
        null(f"comm.{name}", "kernels of collectives wait for late ranks too: see trace.device_mean")
    return {
        **summary,
        "source": "imported",
        "steps": profiled,
        "step_seconds": found,
        "phases": _phases(mean, why, null),
        "comm": {**comm, "exposed_seconds": exposed},
    } | _unknown(null)


def _unknown(null: Null) -> dict[str, None]:
    """What the rest of a summary would say of a run without records as if it were known."""
    for name in ("events", "per_rank", "outcome"):
        null(name, NOT_IN_A_TRACE)
    return dict.fromkeys(("events", "per_rank", "outcome"))


def _step_seconds(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of each step that all ranks have, by the profiler's number, mean over ranks."""
    by_rank = [{step["number"]: step["seconds"] for step in row["steps"]} for row in rows]
    shared = sorted(set.intersection(*map(set, by_rank))) if by_rank else []
    return [float(np.mean([steps[number] for steps in by_rank])) for number in shared]


def _phases(mean: Mapping[str, float] | None, why: str, null: Null) -> dict[str, Any]:
    """Shares are of the devices' span."""
    found: dict[str, Any] = {**nulls("phases", ALL_PHASES, "the traces do not mark the phases of a step", null)}
    for name, of in (("comm_exposed", "exposed_communication_seconds"), ("data", "loading_seconds")):
        if mean is None:
            null(f"phases.{name}", why)
        elif of not in mean:
            null(f"phases.{name}", "the traces show no DataLoader")
        else:
            span = mean["span_seconds"]
            found[name] = {"mean": mean[of], "median": None, "share": mean[of] / span if span else None}
            if not span:
                null(f"phases.{name}.share", "the devices' work has no length")
            null(f"phases.{name}.median", "a trace is taken as a whole, not step by step")
    return found
