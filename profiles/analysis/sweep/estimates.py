"""Means over runs and what may be said between two sets of runs: the run is the unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from ..between import mean_between_runs

CONFIDENCE = 0.95


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """Of positive numbers that differ by factors: the geometric mean with its interval between runs; null for one."""
    mean, interval = mean_between_runs(values)
    return {"mean": mean, "ci95": None if interval is None else list(interval), "values": list(values)}


def plain_estimate(values: Sequence[float]) -> dict[str, Any]:
    """Of shares, which may be 0: the arithmetic mean and Student's t."""
    mean, count = float(np.mean(values)), len(values)
    interval = None
    if count > 1:
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
        interval = [mean - half, mean + half]
    return {"mean": mean, "ci95": interval, "values": list(values)}


def ratio(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> dict[str, Any]:
    """How many times `a` is `b`, geometric means, with the interval of Welch (1947) on logarithms; null where a side
    has one run."""
    logs_a, logs_b = np.log(a), np.log(b)
    low_high = welch(logs_a, logs_b, confidence)
    return {
        "mean": math.exp(float(logs_a.mean() - logs_b.mean())),
        "ci95": None if low_high is None else [math.exp(each) for each in low_high],
    }


def welch(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, confidence: float) -> list[float] | None:
    """The interval of mean(a) - mean(b); None where a side has one value."""
    if min(len(a), len(b)) < 2:
        return None
    parts = np.array([np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)])
    difference, total = float(np.mean(a) - np.mean(b)), float(parts.sum())
    if total == 0:
        return [difference, difference]
    degrees = total**2 / float((parts**2 / np.array([len(a) - 1, len(b) - 1])).sum())
    half = float(stats.t.ppf(0.5 + confidence / 2, degrees)) * math.sqrt(total)
    return [difference - half, difference + half]
