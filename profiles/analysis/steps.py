"""The part of the summary that says where the time of a step goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .communication import Communication
from .load import Run
from .reasons import Null, nulls
from .statistics import spread
from .straggler import own_phases

ALL_PHASES = ("data", "h2d", "forward", "backward", "comm_exposed", "optimizer", "unattributed")
LEDGER_TOLERANCE_SECONDS = 1e-6


def step_seconds(run: Run, null: Null) -> dict[str, Any]:
    """Spread of the step over steps, each step being the mean over ranks."""
    steps = run.complete_steps
    windows = [rank.window for rank in run.ranks if rank.window]
    if not steps and windows and len(windows) == len(run.ranks) and not run.missing_ranks:
        for name in ("median", "p10", "p90", "p99", "ci95"):
            null(f"step_seconds.{name}", "--probe off: the measured window is timed as a whole")
        return {**spread([]), "mean": float(np.mean([window.seconds / window.steps for window in windows]))}
    found = spread(run.step_seconds.mean(axis=0)) if steps else spread([])
    for name, value in found.items():
        if value is None:
            null(
                f"step_seconds.{name}",
                f"too few measured steps ({len(steps)})" if steps else run.why_no_step,
            )
    return found


def samples_per_step(run: Run) -> float | None:
    """Samples of a measured step over all ranks, the mean over steps; None if they were not counted."""
    if not run.complete_steps:
        return run.run_json["config"]["global_batch"]
    return float(run.column("samples").sum(axis=0).mean()) or None


def throughput(
    step_seconds: Mapping[str, Any],
    samples: float | None,
    null: Null,
    why_no_step: str = "no measured step was recorded",
) -> dict[str, Any]:
    mean, interval = step_seconds["mean"], step_seconds["ci95"]
    if samples is None:
        why = why_no_step if mean is None else "samples were not counted: probe.batches(loader) counts them"
        return nulls("throughput", ("samples_per_second", "ci95"), why, null)
    if mean is None:
        null("throughput.samples_per_second", why_no_step)
    if interval is None:
        null("throughput.ci95", "the step has no interval")
    return {
        "samples_per_second": None if mean is None else samples / mean,
        "ci95": None if interval is None else [samples / interval[1], samples / interval[0]],
    }


def phases(run: Run, known: Communication, null: Null) -> dict[str, Any]:
    """Mean, median and share of each phase; the shares sum to 1."""
    found: dict[str, Any] = dict.fromkeys(ALL_PHASES)
    if not run.complete_steps:
        for name in ALL_PHASES:
            null(f"phases.{name}", run.why_no_step)
        return found
    total = run.step_seconds
    if known.exposed is None:
        null("phases.comm_exposed", f"{known.why_unknown}: backward and optimizer still contain it")
    if run.run_json["config"]["device"] == "cpu":
        null("phases.h2d", "there is no copy to a device on CPU")
    for name, why in unmarked(run).items():
        null(f"phases.{name}", why)
    for name, seconds in ledger(run, known).items():
        found[name] = {
            "mean": float(seconds.mean()),
            "median": float(np.median(seconds.mean(axis=0))),
            "share": float(seconds.mean() / total.mean()),
        }
    return found


def ledger(run: Run, known: Communication) -> dict[str, np.ndarray]:
    """Seconds of each phase that is known, (ranks, steps): with `unattributed` they sum to the step, which is
    asserted."""
    parts = own_phases(run, known.exposed)
    if known.exposed is not None:
        parts["comm_exposed"] = known.exposed.total
    if run.run_json["config"]["device"] == "cpu":
        # Handing a CPU batch on copies nothing: the few microseconds of asking are nobody's phase.
        parts["unattributed"] += parts.pop("h2d")
    for name in unmarked(run):
        parts["unattributed"] += parts.pop(name)
    whole = run.step_seconds
    assert np.allclose(sum(parts.values()), whole, rtol=0, atol=LEDGER_TOLERANCE_SECONDS), "the ledger does not close"
    least = min(parts, key=lambda name: parts[name].min())
    assert parts[least].min() > -LEDGER_TOLERANCE_SECONDS, f"{least} is negative: parts of a step overlap"
    return parts


NOT_MARKED = {
    "data": "no step drew from probe.batches(loader), in it or right before: the wait is in unattributed or in events",
    "optimizer": "no optimizer that the probe was given made an update within a step: updates are in unattributed",
    "h2d": "a loop of its own marks no copies to the device: they are in unattributed",
}


def unmarked(run: Run) -> dict[str, str]:
    """Phases that a loop of its own never entered on any rank, each with why: they are not known, and not 0."""
    if run.run_json["config"].get("engine") != "own" or not run.complete_steps:
        return {}
    on_cpu = run.run_json["config"]["device"] == "cpu"
    return {
        name: why
        for name, why in NOT_MARKED.items()
        if not run.phase_seconds[name].any() and not (on_cpu and name == "h2d")
    }


def detail(run: Run, communication: Communication, null: Null) -> dict[str, Any]:
    if communication.exposed is None:
        null("detail.optimizer_comm_seconds", communication.why_unknown)
        in_optimizer = None
    else:
        in_optimizer = float(np.mean(communication.exposed.phases.get("optimizer", 0.0)))
    how = run.run_json["config"]["checkpointing"]
    timed = run.column("recompute_seconds")
    recompute = 0.0 if how == "none" else None
    if timed.size and not np.isnan(timed).any():
        recompute = float(timed.mean())
    elif how != "none":
        null("detail.recompute_seconds", "recompute is part of backward and was not timed apart")
    if not run.complete_steps:
        null("detail.host_data_seconds", run.why_no_step)
    collected = run.column("gc_seconds")
    paused = float(collected.mean()) if collected.size and not np.isnan(collected).any() else None
    if paused is None:
        null("detail.gc_seconds", "the collector's pauses were not recorded")
    waited = float(run.column("host_data_seconds").mean()) if run.complete_steps else None
    if (why := unmarked(run).get("data")) is not None:
        waited = None
        null("detail.host_data_seconds", why)
    return {
        "recompute_seconds": recompute,
        "gc_seconds": paused,
        "host_data_seconds": waited,
        "optimizer_comm_seconds": in_optimizer,
    }


def events(run: Run) -> list[dict[str, Any]]:
    """Events by kind: how many, how many of them failed, and seconds in all, mean over ranks."""
    records = [event for rank in run.ranks for event in rank.events]
    rows = []
    for kind in sorted({event.event for event in records}):
        alike = [event for event in records if event.event == kind]
        seconds = sum(event.seconds for event in alike) / len(run.ranks)
        failed = len({event.step for event in alike if "failed" in event.values})
        rows.append({"kind": kind, "count": len({e.step for e in alike}), "failed": failed, "seconds": seconds})
    return rows


def per_rank(run: Run, known: Communication, null: Null) -> list[dict[str, Any]]:
    """Each rank's step: its phases, its own time (without what it was blocked) and what it waited for late ranks."""
    own = own_phases(run, known.exposed) if run.complete_steps else {}
    if run.run_json["config"]["device"] == "cpu":
        own.pop("h2d", None)
    for name in ("unattributed", *unmarked(run)):
        own.pop(name, None)
    rows = []
    for index, rank in enumerate(run.ranks):
        steps = run.complete_steps
        seconds = float(run.step_seconds[index].mean()) if steps else None
        blocked = float(known.exposed.total[index].mean()) if steps and known.exposed is not None else None
        rows.append(
            {
                "rank": rank.rank,
                "host": rank.start.host if rank.start else None,
                "phases": {name: float(values[index].mean()) for name, values in own.items()} if steps else None,
                "step_seconds": seconds,
                "own_seconds": None if seconds is None or blocked is None else seconds - blocked,
                "waiting_seconds": _waiting(run, known, index),
            }
        )
    if any(row["host"] is None for row in rows):
        null("per_rank.host", "the rank's first record is missing")
    for name in ("phases", "step_seconds", "own_seconds", "waiting_seconds"):
        if any(row[name] is None for row in rows):
            why = known.why_unknown or known.why_not_split if run.complete_steps else run.why_no_step
            null(f"per_rank.{name}", why)
    return rows


def _waiting(run: Run, known: Communication, index: int) -> float | None:
    if not run.complete_steps:
        return None
    if run.run_json["world_size"] == 1:
        return 0.0
    return float(known.split.waiting[index].mean()) if known.split is not None else None
