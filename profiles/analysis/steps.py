"""The part of the summary that says where the time of a step goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..records import PHASES
from .load import Run
from .reasons import Null
from .statistics import spread

ALL_PHASES = ("data", "h2d", "forward", "backward", "comm_exposed", "optimizer", "unattributed")
LEDGER_TOLERANCE_SECONDS = 1e-6


def step_seconds(run: Run, null: Null) -> dict[str, Any]:
    """Spread of the step over steps, each step being the mean over ranks."""
    steps = run.complete_steps
    windows = [rank.window for rank in run.ranks if rank.window]
    if not steps and windows and len(windows) == len(run.ranks):
        for name in ("median", "p10", "p90", "p99", "ci95"):
            null(f"step_seconds.{name}", "--probe off: the measured window is timed as a whole")
        return {**spread([]), "mean": float(np.mean([window.seconds / window.steps for window in windows]))}
    found = spread(run.matrix(lambda step: step.seconds).mean(axis=0)) if steps else spread([])
    for name, value in found.items():
        if value is None:
            null(
                f"step_seconds.{name}",
                f"{len(steps)} measured steps are too few" if steps else "no measured step was finished",
            )
    return found


def throughput(step_seconds: Mapping[str, Any], global_batch: int, null: Null) -> dict[str, Any]:
    mean, interval = step_seconds["mean"], step_seconds["ci95"]
    if mean is None:
        null("throughput.samples_per_second", "no measured step was finished")
    if interval is None:
        null("throughput.ci95", "the step has no interval")
    return {
        "samples_per_second": None if mean is None else global_batch / mean,
        "ci95": None if interval is None else [global_batch / interval[1], global_batch / interval[0]],
    }


def phases(run: Run, null: Null) -> dict[str, Any]:
    """Mean, median and share of each phase; the shares sum to 1."""
    found: dict[str, Any] = dict.fromkeys(ALL_PHASES)
    if not run.complete_steps:
        for name in ALL_PHASES:
            null(f"phases.{name}", "no measured step was recorded")
        return found
    total = run.matrix(lambda step: step.seconds)
    ledger = {name: run.matrix(lambda step, name=name: step.phases.get(name, 0.0)) for name in PHASES}
    if run.run_json["config"]["device"] == "cpu":
        # Handing a CPU batch on copies nothing: the few microseconds of asking are nobody's phase.
        del ledger["h2d"]
        null("phases.h2d", "there is no copy to a device on CPU")
    ledger["unattributed"] = total - sum(ledger.values())
    assert ledger["unattributed"].min() > -LEDGER_TOLERANCE_SECONDS, "phases are longer than their step"
    if run.run_json["world_size"] == 1:
        ledger["comm_exposed"] = np.zeros_like(total)
    else:
        null("phases.comm_exposed", "backward and optimizer still contain it")
    for name, seconds in ledger.items():
        found[name] = {
            "mean": float(seconds.mean()),
            "median": float(np.median(seconds.mean(axis=0))),
            "share": float(seconds.mean() / total.mean()),
        }
    return found


def detail(run: Run, null: Null) -> dict[str, Any]:
    null("detail.optimizer_comm_seconds", "communication was not recorded")
    if run.run_json["config"]["checkpointing"] != "none":
        null("detail.recompute_seconds", "recompute is part of backward and was not timed apart")
    if not run.complete_steps:
        null("detail.host_data_seconds", "no measured step was recorded")
    return {
        "recompute_seconds": 0.0 if run.run_json["config"]["checkpointing"] == "none" else None,
        "host_data_seconds": float(run.matrix(lambda s: s.host_data_seconds).mean()) if run.complete_steps else None,
        "optimizer_comm_seconds": None,
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


def per_rank(run: Run, null: Null) -> list[dict[str, Any]]:
    rows = []
    for rank in run.ranks:
        steps = [rank.measured[step] for step in run.complete_steps]
        names = [name for name in PHASES if not (name == "h2d" and run.run_json["config"]["device"] == "cpu")]
        rows.append(
            {
                "rank": rank.rank,
                "host": rank.start.host if rank.start else None,
                "phases": {n: float(np.mean([s.phases.get(n, 0.0) for s in steps])) for n in names} if steps else None,
                "step_seconds": float(np.mean([s.seconds for s in steps])) if steps else None,
                "own_seconds": None,
                "waiting_seconds": None,
            }
        )
    if any(row["host"] is None for row in rows):
        null("per_rank.host", "the rank's first record is missing")
    for name in ("own_seconds", "waiting_seconds"):
        null(f"per_rank.{name}", "communication was not recorded")
    if not run.complete_steps:
        null("per_rank.phases", "no measured step was recorded")
        null("per_rank.step_seconds", "no measured step was recorded")
    return rows
