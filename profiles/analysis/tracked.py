"""A run as experiment trackers keep it: series of one value a step, and what is said of it as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .communication import communication
from .load import RankRecords, Run
from .steps import ledger
from .withheld import is_withheld


def tracked(run: Run, summary: Mapping[str, Any]) -> dict[str, Any]:
    """`series`: rows [step, unix seconds, value] by name, finite values alone; `config` and `results`: what the run was
    and came to, numbers and texts by dotted name. Step times and phases, those of the
    summary, are means over ranks of the measured steps."""
    series: dict[str, list[list[float]]] = {}
    first = run.ranks[0] if run.ranks else None
    if first is not None:
        times, began = _times(first)
        for name, values in (("train/loss", summary["loss"]), ("train/grad_norm", summary["grad_norm"])):
            series[name] = [
                [step, times[step], value]
                for step, value in zip(run.trained_steps, values or [], strict=False)
                if value is not None and math.isfinite(value)
            ]
        rates = zip(first.steps.step.tolist(), first.steps.numbers["lr"].tolist(), strict=True)
        series["train/lr"] = [[step, times[step], rate] for step, rate in rates]
        steps = run.complete_steps
        # Of a run that trained something else no figure of speed is told.
        timed = () if is_withheld(run.status) else (("step/seconds", run.step_seconds), *_phases(run))
        for name, seconds in timed:
            series[name] = _rows(steps, times, seconds)
        for event in first.events:
            for name, value in event.values.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                    series.setdefault(f"{event.event}/{name}", []).append(
                        [event.step, began + event.start_seconds, value]
                    )
    return {
        "run_id": summary["run_id"],
        "name": summary["name"],
        "config": _flat(run.run_json.get("config") or {}),
        "results": _results(summary),
        "series": {name: rows for name, rows in series.items() if rows},
    }


def _phases(run: Run) -> list[tuple[str, np.ndarray]]:
    if not run.complete_steps:
        return []
    return [(f"phase/{name}_seconds", values) for name, values in ledger(run, communication(run)).items()]


def _rows(steps: list[int], times: Mapping[int, float], seconds: np.ndarray) -> list[list[float]]:
    means = seconds.mean(axis=0) if len(steps) else []
    return [[step, times[step], float(value)] for step, value in zip(steps, means, strict=True)]


def _times(rank: RankRecords) -> tuple[dict[int, float], float]:
    """When each step of the rank began, by the clock on the wall when the rank started; and when `start_seconds` is 0,
    its first boundary, by the same clock."""
    start, steps = rank.start, rank.steps
    since = steps.numbers["start_seconds"]
    if start is not None:
        since = np.where(steps.begin_ns >= 0, steps.begin_ns * 1e-9 - start.monotonic_seconds, since)
        since = since + start.wall_seconds
    began = start.wall_seconds if start is not None else 0.0
    if len(since):
        began = float(since[0] - steps.numbers["start_seconds"][0])
    return dict(zip(steps.step.tolist(), since.tolist(), strict=True)), began


RESULTS = (
    "throughput.samples_per_second",
    "step_seconds.mean",
    "step_seconds.median",
    "cost.device_hours_per_million_samples",
    "cost.usd_per_million_samples",
    "utilization.mfu",
    "utilization.joules_per_sample",
    "memory.peak_bytes",
    "memory.rss_peak_bytes",
    "comm.exposed_seconds",
    "quality.best",
    "outcome.exit_code",
)


def _results(summary: Mapping[str, Any]) -> dict[str, float]:
    """What is known of RESULTS, and the share of each phase, and memory at the peak by kind."""
    found: dict[str, Any] = {}
    for path in RESULTS:
        value: Any = summary
        for name in path.split("."):
            value = value[name] if value is not None else None
        found[path] = value
    found |= {f"phases.{name}.share": row and row["share"] for name, row in summary["phases"].items()}
    if summary["memory"]["by_kind"]["temporary"] is not None:
        found |= {f"memory.by_kind.{name}": count for name, count in summary["memory"]["by_kind"].items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, float | str | bool]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}{name}.")
        elif value is not None:
            found[f"{path}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
