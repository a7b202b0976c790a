"""One row per cell of the matrix, those too that were refused, failed or are missing."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...sweepfolder import Cell
from ..between import mean_between_runs
from ..telling import too_few
from .estimates import CONFIDENCE, estimate, plain_estimate, ratio
from .runs import SweepRun, measured

USD, HOURS = "usd_per_million_samples", "device_hours_per_million_samples"
ONE_RUN = "one run has no spread between runs; more --repeats give one"
DIFFERENT_PRICES = "its runs were priced differently; --usd-per-gpu-hour of the report gives all one price"
# What a sweep writes of a run that was not held against DDP's, and of the one that others are held against.
UNCHECKED, REFERENCE = "not checked: ", "the reference"
UNJUDGED = "no run of ddp has finished with its world, batch and precision"
# Figures of a row that need a measured run, and where a summary has them.
POSITIVE = {
    "step_seconds": ("step_seconds", "mean"),
    "samples_per_second": ("throughput", "samples_per_second"),
    HOURS: ("cost", HOURS),
    USD: ("cost", USD),
    "energy_usd_per_million_samples": ("cost", "energy_usd_per_million_samples"),
    "mfu": ("utilization", "mfu"),
}
ADDS_UP_TO = 1e-6
OTHERS = ("by_cause", "comm_share", "peak_bytes", "oversubscribed", "device_name")


@dataclass(frozen=True)
class CellResult:
    """A cell, its runs, and its row in the summary."""

    cell: Cell
    runs: list[SweepRun]
    row: dict[str, Any]

    @property
    def summaries(self) -> list[Mapping[str, Any]]:
        """Of the runs that count; none unless the cell is `measured`."""
        return list(measured(self.runs)) if self.row["state"] == "measured" else []

    @property
    def rounds(self) -> list[int]:
        """The round of the sweep in which each of those was made."""
        return [run.repeat for run in self.runs if run.summary is not None]

    @property
    def codes(self) -> list[str]:
        """What its runs differ in of code, versions and variables."""
        found = [run.code for run in self.runs if run.summary is not None]
        return sorted({name for each in found for name in {*each, *found[0]} if each.get(name) != found[0].get(name)})

    def values(self, name: str) -> list[float]:
        """One number a run."""
        found = self.row[name]
        return [] if found is None else found["values"]


def held(a: CellResult, b: CellResult, name: str, confidence: float = CONFIDENCE) -> dict[str, Any]:
    """How many times figure `name` of `a` is that of `b`. By rounds where those were made one after the other; runs of
    a round that were made at another time share no drift of the machine."""
    rounds = (a.rounds, b.rounds) if in_rounds((a, b)) else ((), ())
    return ratio(a.values(name), b.values(name), confidence, rounds=rounds)


def in_rounds(cells: Sequence[CellResult]) -> bool:
    """Whether each round of the runs that count was begun when the one before it had been, as far as that is known."""
    began: dict[int, list[str]] = {}
    for each in cells:
        for run in each.runs:
            if run.summary is not None and run.attempt is not None:
                began.setdefault(run.repeat, []).append(run.attempt.started_utc)
    order = [began[repeat] for repeat in sorted(began)]
    return all(max(before) <= min(after) for before, after in itertools.pairwise(order))


def cell_result(cell: Cell, runs: list[SweepRun]) -> CellResult:
    """The row of `cell`."""
    state, why = _state(cell, runs)
    summaries = list(measured(runs)) if state == "measured" else []
    machines = {run.machine for run in runs if run.summary is not None} if summaries else set()
    if len(machines) > 1:
        names = (f"{name} ({cores} cores, {threads} threads a rank)" for name, cores, threads in machines)
        state, why, summaries = "mixed_hardware", f"its runs are of {', '.join(sorted(names))}", []
    reasons: dict[str, str] = {}
    row = {
        "name": cell.name,
        "strategy": cell.strategy,
        "precision": cell.precision,
        "world_size": cell.world_size,
        "micro_batch": cell.micro_batch,
        "grad_accumulation": cell.grad_accumulation,
        "global_batch": cell.global_batch,
        "state": state,
        "why": why,
        "parity": _parity(cell, runs, state),
        "runs": [run.row() for run in runs],
        "measured_runs": len(summaries),
        "diagnosis": _diagnosis(runs if summaries else [], reasons),
        **_figures(summaries, why or "nothing was measured", reasons),
        "on_front": False,
        "recommended": False,
        "reasons": reasons,
    }
    return CellResult(cell, runs, row)


def _state(cell: Cell, runs: Sequence[SweepRun]) -> tuple[str, str | None]:
    if cell.refused is not None:
        return "refused", cell.refused
    bad = [run for run in runs if run.state != "measured"]
    if apart := next((run for run in runs if run.state == "parity_failed"), None):
        return apart.state, apart.why
    if len(bad) < len(runs):
        told = "; ".join(f"repeat {run.repeat}: {run.state.replace('_', ' ')}, {run.why}" for run in bad)
        return "measured", f"{len(runs) - len(bad)} of {len(runs)} repeats were measured. {told}" if bad else None
    for state in ("failed", "unreadable", "running"):
        if found := next((run for run in bad if run.state == state), None):
            return state, found.why
    return "missing", next((run.why for run in bad), "not run yet")


def _parity(cell: Cell, runs: Sequence[SweepRun], state: str) -> dict[str, Any]:
    """What is known of whether the cell trained what DDP did."""
    if state in ("refused", "missing", "running"):
        return {"state": "not checked", "why": "nothing was measured"}
    if state == "parity_failed":
        return {"state": "failed", "why": next(run.why for run in runs if run.state == state)}
    if not cell.gated:
        return {"state": "not checked", "why": "losses are not held against ddp's in a sweep of this kind"}
    compared = [run.attempt.parity for run in runs if run.summary and run.attempt]
    if not compared:
        return {"state": "not checked", "why": "nothing was measured"}
    if not all(compared):
        return {"state": "not checked", "why": UNJUDGED}
    told = list(dict.fromkeys(str(each) for each in compared))
    if unchecked := [each for each in told if each.startswith(UNCHECKED)]:
        return {"state": "not checked", "why": "; ".join(each.removeprefix(UNCHECKED) for each in unchecked)}
    against = [each for each in told if each != REFERENCE]
    return {"state": "held" if against else "reference", "why": "; ".join(against) or None}


def _diagnosis(runs: Sequence[SweepRun], reasons: dict[str, str]) -> list[str] | None:
    """The labels of its runs' own diagnoses, that of most first."""
    labels = Counter(run.diagnosis for run in runs if run.diagnosis is not None)
    if not labels:
        reasons["diagnosis"] = "none of its runs has a diagnosis.json"
        return None
    return [label for label, _ in labels.most_common()]


def _figures(summaries: Sequence[Mapping[str, Any]], why: str, reasons: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys((*POSITIVE, *OTHERS))
    if not summaries:
        reasons |= dict.fromkeys(found, why)
        return found
    for name, (part, field) in POSITIVE.items():
        found[name] = _estimate(
            name, [summary[part][field] for summary in summaries], summaries, f"{part}.{field}", reasons
        )
    priced = len({summary["cost"]["usd_per_gpu_hour"] for summary in summaries}) == 1
    if not priced:
        found[USD], reasons[USD] = None, DIFFERENT_PRICES
    shares = [summary["phases"]["comm_exposed"] for summary in summaries]
    if None in shares:
        reasons["comm_share"] = _why(summaries, "phases.comm_exposed")
    else:
        found["comm_share"] = plain_estimate([share["share"] for share in shares])
    found["by_cause"] = _by_cause(summaries, reasons, priced=priced)
    peaks = [summary["memory"]["peak_bytes"] for summary in summaries]
    known = [peak for peak in peaks if peak is not None]
    found["peak_bytes"] = max(known, default=None)
    if not known:
        reasons["peak_bytes"] = _why(summaries, "memory.peak_bytes")
    if len(summaries) == 1:
        reasons |= {f"{name}.ci95": ONE_RUN for name in (*POSITIVE, "comm_share") if found[name] is not None}
    reasons |= {
        f"{name}.ci95": too_few(len(summaries))
        for name in POSITIVE
        if len(summaries) > 1 and found[name] is not None and found[name]["ci95"] is None
    }
    return {
        **found,
        "oversubscribed": any(s["oversubscribed"] for s in summaries),
        "device_name": summaries[0]["device_name"],
    }


def _estimate(
    name: str, values: list[Any], summaries: Sequence[Mapping[str, Any]], path: str, reasons: dict[str, str]
) -> Any:
    if any(value is None or value <= 0 for value in values):
        reasons[name] = _why(summaries, path)
        return None
    return estimate(values)


def _why(summaries: Sequence[Mapping[str, Any]], path: str) -> str:
    """Why a summary is silent there."""
    parts = path.split(".")
    above = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next(
        (s["reasons"][each] for s in summaries for each in above if each in s["reasons"]), f"{path} is not known"
    )


def _by_cause(
    summaries: Sequence[Mapping[str, Any]], reasons: dict[str, str], *, priced: bool
) -> list[dict[str, Any]] | None:
    """The leaves of the runs' trees, in descending order: of each its part of what steps and the events that follow
    them cost, `cost.by_cause_total`. That total is the geometric mean over runs, as all figures of a cell, and a part
    is the mean over runs of its share of it, so that the parts add up to the total that is shown."""
    trees = [summary["cost"]["by_cause_leaves"] for summary in summaries]
    if None in trees:
        reasons["by_cause"] = _why(summaries, "cost.by_cause_leaves")
        return None
    by_run = [{row["cause"]: row["share"] for row in tree} for tree in trees]
    if len({frozenset(rows) for rows in by_run}) > 1:
        reasons["by_cause"] = "its runs tell causes apart differently"
        return None
    totals = [summary["cost"]["by_cause_total"] for summary in summaries]
    seconds = mean_between_runs([total["seconds_per_step"] for total in totals])[0]
    hours = [total[HOURS] for total in totals]
    whole = None if None in hours else mean_between_runs(hours)[0]
    if whole is None:
        reasons[f"by_cause.{HOURS}"] = _why(summaries, f"cost.by_cause_total.{HOURS}")
    price = summaries[0]["cost"]["usd_per_gpu_hour"] if priced else None
    if price is None or whole is None:
        reasons[f"by_cause.{USD}"] = _why(summaries, "cost.usd_per_gpu_hour") if priced else DIFFERENT_PRICES
    rows = []
    for cause in by_run[0]:
        share = float(np.mean([rows[cause] for rows in by_run]))
        time = None if whole is None else share * whole
        usd = None if time is None or price is None else time * price
        rows.append({"cause": cause, "seconds": share * seconds, "share": share, HOURS: time, USD: usd})
    adds_up = math.isclose(sum(row["seconds"] for row in rows), seconds, rel_tol=ADDS_UP_TO)
    assert adds_up, f"causes do not sum to the {seconds} s of a step and its events"
    return sorted(rows, key=lambda row: -row["share"])
