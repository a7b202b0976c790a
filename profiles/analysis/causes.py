"""Where a difference in time comes from: the phases of both sides, whose differences sum to that of the step.

A side's step is the geometric mean d over its runs, as in the effects, and a phase's part of it is d x the mean over
runs of its share: so the parts sum to the step that is shown. Their intervals are those of first order in what runs
differ by (the delta method).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .between import Difference, logarithms
from .compared import ComparedRun
from .reasons import Null
from .steps import ALL_PHASES, LEDGER_TOLERANCE_SECONDS
from .telling import TOO_FEW
from .verdict import CONFIDENCE

Held = Callable[[Sequence[float], Sequence[float]], Difference]
# What a phase that one side does not know is part of there; both sides are then summed up to that.
PART_OF = {"comm_exposed": ("forward", "backward", "optimizer"), "h2d": ("unattributed",)}


def causes(
    a: Sequence[ComparedRun],
    b: Sequence[ComparedRun],
    per: str,
    held: Held,
    null: Null,
) -> dict[str, Any] | None:
    """Seconds of each phase on both sides per step or sample, and B - A with its interval. The
    differences sum to the difference of the whole; the largest comes first."""
    lacking = next((run for run in (*a, *b) if run.at("phases.forward") is None), None)
    if lacking is not None:
        null("causes", f"{lacking.name}: {lacking.why_not('phases.forward')}")
        return None
    steps = [logarithms([_whole(run, per) for run in runs]) for runs in (a, b)]
    # Of the runs that the effects are of.
    middle = held(steps[0].tolist(), steps[1].tolist()).means

    def row(of: Callable[[ComparedRun], float]) -> dict[str, Any]:
        shares = [[of(run) for run in runs] for runs in (a, b)]
        means = held(*shares).means
        parts = [
            [math.exp(mid) * (share + mean * (log - mid)) for share, log in zip(shares_of, logs.tolist(), strict=True)]
            for shares_of, mean, logs, mid in zip(shares, means, steps, middle, strict=True)
        ]
        return _row(held(*parts))

    rows = [{"cause": " + ".join(names), **row(_share_of(names))} for names in _groups((*a, *b))]
    whole = row(lambda run: 1.0)
    missing = sum(row["difference_seconds"] for row in rows) - whole["difference_seconds"]
    assert abs(missing) <= LEDGER_TOLERANCE_SECONDS + 1e-9 * whole["a"], "the causes do not sum to the difference"
    for each in (*rows, whole):
        if each["ci95"] and each["ci95"][1] - each["ci95"][0] > 2 * max(whole["a"], whole["b"]):
            # Not even whether it is all of a step.
            each["ci95"] = None
            null("causes.ci95", TOO_FEW + ": the interval is wider than the step to each side")
    rows.sort(key=lambda row: -abs(row["difference_seconds"]))
    return {"per": per, "rows": rows, "whole": whole}


def _groups(runs: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """The phases, those that not all runs know joined to what they are part of."""
    known = {name for name in ALL_PHASES if any(run.at(f"phases.{name}") is not None for run in runs)}
    groups = [(name,) for name in ALL_PHASES if name in known]
    for name, parts in PART_OF.items():
        if name in known and any(run.at(f"phases.{name}") is None for run in runs):
            joined = tuple(each for each in ALL_PHASES if each in (name, *parts))
            groups = [group for group in groups if group[0] not in joined] + [joined]
    return groups


def _row(found: Difference) -> dict[str, Any]:
    """Both means and their difference are of the runs that the interval is of."""
    interval = found.interval(CONFIDENCE)
    return {
        "a": found.means[0],
        "b": found.means[1],
        "difference_seconds": found.estimate,
        "ci95": None if interval is None else list(interval),
    }


def _share_of(names: Sequence[str]) -> Callable[[ComparedRun], float]:
    """The share of the step that goes to phases of those names."""
    return lambda run: sum(run.at(f"phases.{name}.mean") or 0.0 for name in names) / run.at("step_seconds.mean")


def _whole(run: ComparedRun, per: str) -> float:
    return run.at("step_seconds.mean") / _samples(run, per)


def _samples(run: ComparedRun, per: str) -> float:
    return 1.0 if per == "step" else run.at("throughput.samples_per_second") * run.at("step_seconds.mean")
