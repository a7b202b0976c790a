"""Spread of a series of steps within one run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
# Below this many steps a 99th percentile is the maximum under another name.
P99_STEPS = 100


def block_bootstrap_mean(series: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the mean of a time series, by the moving-block bootstrap (Künsch 1989).

    Neighbouring steps are alike, so blocks of n^(1/3) steps are drawn, not single ones. It tells the spread inside
    one run and nothing of the next run. None below 3 steps.
    """
    values = np.asarray(series, dtype=np.float64)
    count = len(values)
    if count < 3:
        return None
    length = max(1, round(count ** (1 / 3)))
    blocks = -(-count // length)
    generator = np.random.Generator(np.random.Philox(seed))
    starts = generator.integers(0, count - length + 1, size=(RESAMPLES, blocks))
    lengths = np.full(blocks, length)
    lengths[-1] = count - length * (blocks - 1)
    # Sums up to each place, of differences from the mean, so that long series lose no digits.
    mean = values.mean()
    sums = np.concatenate([[0.0], np.cumsum(values - mean)])
    drawn = (sums[starts + lengths] - sums[starts]).sum(axis=1) / count
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(mean + low), float(mean + high)


def spread(series: Sequence[float]) -> dict[str, float | list[float] | None]:
    """Median, mean, percentiles and the interval of the mean of `series`; null where too few steps tell."""
    values = np.asarray(series, dtype=np.float64)
    if not len(values):
        return dict.fromkeys(("median", "mean", "p10", "p90", "p99", "ci95"))
    interval = block_bootstrap_mean(series)
    return {
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "p10": float(np.quantile(values, 0.1)),
        "p90": float(np.quantile(values, 0.9)),
        "p99": float(np.quantile(values, 0.99)) if len(values) >= P99_STEPS else None,
        "ci95": None if interval is None else list(interval),
    }
