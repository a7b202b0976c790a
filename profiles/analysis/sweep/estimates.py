"""Means over runs and what may be said between two sets of runs: the run is the unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from ..between import difference, mean_between_runs
from ..telling import tells

CONFIDENCE = 0.95


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """Of positive numbers that differ by factors: the geometric mean with its interval between runs; null for one
    run, and where it is too wide to tell anything."""
    mean, interval = mean_between_runs(values)
    return {"mean": mean, "ci95": list(interval) if interval and tells(interval) else None, "values": list(values)}


def plain_estimate(values: Sequence[float]) -> dict[str, Any]:
    """Of shares, which may be 0: the arithmetic mean and Student's t."""
    mean, count = float(np.mean(values)), len(values)
    interval = None
    if count > 1:
        half = float(special.stdtrit(count - 1, 0.5 + CONFIDENCE / 2) * np.std(values, ddof=1) / math.sqrt(count))
        interval = [mean - half, mean + half]
    return {"mean": mean, "ci95": interval, "values": list(values)}


def ratio(
    a: Sequence[float],
    b: Sequence[float],
    confidence: float = CONFIDENCE,
    *,
    rounds: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> dict[str, Any]:
    """How many times `a` is `b`, geometric means, with the interval on logarithms of `between.difference`; null where
    nothing tells how much like runs differ. `rounds`: the sweep's round in which each run of `a` and `b` was made.
    Where they are held against each other by rounds, mean and interval are both of the rounds that they share."""
    found = difference(np.log(b).tolist(), np.log(a).tolist(), rounds_a=rounds[1], rounds_b=rounds[0])
    interval = found.interval(confidence)
    return {
        "mean": math.exp(found.estimate),
        "ci95": None if interval is None else [math.exp(each) for each in interval],
    }


def difference_interval(a: Sequence[float], b: Sequence[float]) -> list[float] | None:
    """95 % of mean(a) - mean(b), on the scale that they have."""
    interval = difference(b, a).interval(CONFIDENCE)
    return None if interval is None else list(interval)
