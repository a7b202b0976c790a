"""Spread between runs: the run is the unit, as steps of one run tell nothing of the next run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


def mean_between_runs(values: Sequence[float], confidence: float = 0.95) -> tuple[float, tuple[float, float] | None]:
    """The geometric mean of one positive number per run and its interval between runs: Student's t on logarithms, as
    runs differ by factors. The interval is None for one run, which has no spread.

    Raises ValueError for no run, or a number that is not positive.
    """
    logs = np.log(np.asarray(values, dtype=np.float64))
    if not len(logs) or not np.isfinite(logs).all():
        raise ValueError(f"needs positive numbers, one per run, not {list(values)}")
    mean = float(logs.mean())
    if len(logs) == 1:
        return math.exp(mean), None
    half = float(stats.t.ppf(0.5 + confidence / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))
