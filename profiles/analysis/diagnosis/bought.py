"""What a change has bought: runs with it held against runs without, made in turn, as plain data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..alike import unlike
from ..between import student_t
from ..compared import ComparedRun, Side
from ..comparison import compare
from ..verdict import CONFIDENCE

# Steps whose mean loss is held against the other side's: one step's says little.
LOSS_SHARE = 0.2
# A change that trains as well: its loss is surely less than this share higher.
WORSE = 0.05


def bought(
    before: Side,
    after: Side,
    label: str,
    options: Mapping[str, Any],
    share: float | None,
    ci95: tuple[float, float] | None,
) -> dict[str, Any]:
    """`saved_share` of a step's time (of a sample's, where batches differ) with its 95 % interval between runs, the
    verdict (`faster`, `slower`, `no change`, `cannot tell`), and what was predicted. `learns`: where the batch or the
    precision was changed, whether the loss got as far. `reasons` of nulls."""
    held = compare(before, after)
    verdict, reasons = held["verdict"], {}
    low_high = verdict["ci95"]
    if low_high is None:
        reasons["ci95"] = held["reasons"].get("repeats.needed", "one run a side has no spread")
    apart = unlike(before.runs[0], after.runs[0])
    learns = None
    if {"different-batch", "different-precision"} & set(apart):
        learns = _learns(before.runs, after.runs, reasons)
    else:
        reasons["learns"] = "the change decides neither batch nor precision: both sides train the same"
    if share is None:
        reasons["predicted_share"] = "it was no matter of time"
    return {
        "label": label,
        "options": dict(options),
        "verdict": verdict["word"],
        "per": held["per"],
        "saved_share": -verdict["effect"],
        "ci95": None if low_high is None else [-low_high[1], -low_high[0]],
        "predicted_share": share,
        "predicted_ci95": None if ci95 is None else list(ci95),
        "rounds": min(len(before.runs), len(after.runs)),
        "needed": held["repeats"]["needed"],
        "learns": learns,
        "runs": {"before": [run.name for run in before.runs], "after": [run.name for run in after.runs]},
        "reasons": reasons,
    }


def _learns(
    before: Sequence[ComparedRun], after: Sequence[ComparedRun], reasons: dict[str, str]
) -> dict[str, Any] | None:
    """The loss that both sides have come to after as many samples, and how much higher it is with the change."""
    losses = [_after_samples(a, b) for a, b in zip(before, after, strict=False)]
    known = [pair for pair in losses if pair is not None]
    if not known or len(known) < len(losses):
        reasons["learns"] = "losses after equal numbers of samples are not known of every run"
        return None
    ratios = np.log([b / a for a, b, _ in known])
    mean = float(ratios.mean())
    interval = None
    if len(ratios) > 1:
        half = student_t(len(ratios) - 1, CONFIDENCE) * float(ratios.std(ddof=1)) / math.sqrt(len(ratios))
        interval = [math.expm1(mean - half), math.expm1(mean + half)]
    else:
        reasons["learns.ci95"] = "one run a side has no spread"
    verdict = "cannot tell"
    if interval is not None and interval[1] < WORSE:
        verdict = "as well"
    elif interval is not None and interval[0] > 0:
        verdict = "worse"
    return {
        "verdict": verdict,
        "samples": known[0][2],
        "loss_before": float(np.mean([a for a, _, _ in known])),
        "loss_after": float(np.mean([b for _, b, _ in known])),
        "higher_share": math.expm1(mean),
        "ci95": interval,
        "margin": WORSE,
    }


def _after_samples(a: ComparedRun, b: ComparedRun) -> tuple[float, float, int] | None:
    """Mean losses of both over the last LOSS_SHARE of as many samples, which both had; None where one is not known or
    not positive, so that no ratio can be told."""
    batches = [run.facts["config"].get("global_batch") for run in (a, b)]
    series = [run.summary["loss"] for run in (a, b)]
    if not all(batches) or not all(series):
        return None
    samples = min(batch * len(each) for batch, each in zip(batches, series, strict=True))
    means = []
    for batch, each in zip(batches, series, strict=True):
        end = samples // batch
        part = list(itertools.islice(each, max(0, end - max(1, round(LOSS_SHARE * end))), end))
        if not part or any(value is None for value in part) or not (mean := sum(part) / len(part)) > 0:
            return None
        means.append(mean)
    return means[0], means[1], samples
