"""Spread between runs: the run is the unit, as steps of one run tell nothing of the next run.

How two sides are held against each other, and which ways were tried and left: docs/compare.md.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

# From this many shared rounds on, a side's runs are held against the other's of the same round. With fewer, the degrees
# of freedom that pairing costs weigh more than the drift that it takes out (docs/compare.md, measured).
PAIRED_ROUNDS = 5
# A side of one run borrows its spread from the other from this many runs on.
LENDING_RUNS = 3

Values = Sequence[float] | np.ndarray
How = Literal["rounds", "runs", "other side", "stored"]


@dataclass(frozen=True)
class Spread:
    """Standard deviation between like runs, on the scale they are compared on, and its degrees of freedom."""

    sd: float
    degrees: float
    how: How


@dataclass(frozen=True)
class Difference:
    """B minus A. `error` is the standard error of `estimate`; both it and `spread` are None where nothing tells how
    much two like runs differ. `runs` counts the runs of each side that took part, `means` are theirs."""

    estimate: float
    error: float | None
    spread: Spread | None
    runs: tuple[int, int]
    means: tuple[float, float]

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """By Student's t: a difference of the same size by chance alone is rarer than 1 - confidence."""
        if self.error is None or self.spread is None:
            return None
        half = student_t(self.spread.degrees, confidence) * self.error
        return self.estimate - half, self.estimate + half


def mean_between_runs(values: Values, confidence: float = 0.95) -> tuple[float, tuple[float, float] | None]:
    """The geometric mean of one positive number per run and its interval between runs: Student's t on logarithms, as
    runs differ by factors. The interval is None for one run, which has no spread.

    Raises ValueError for no run, or a number that is not positive.
    """
    logs = logarithms(values)
    mean = float(logs.mean())
    if len(logs) == 1:
        return math.exp(mean), None
    half = student_t(len(logs) - 1, confidence) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))


def student_t(degrees: float, confidence: float) -> float:
    """How many standard errors an interval of that confidence reaches to each side."""
    return float(special.stdtrit(degrees, 0.5 + confidence / 2))


def logarithms(values: Values) -> np.ndarray:
    """Of one positive number per run. Raises ValueError for no run, or a number that is not positive."""
    given = np.asarray(values, dtype=np.float64)
    if not len(given) or not (np.isfinite(given).all() and (given > 0).all()):
        raise ValueError(f"needs positive numbers, one per run, not {list(values)}")
    return np.log(given)


def stored_spread(rates: Values) -> Spread | None:
    """Of the logarithms of like runs' rates that were kept from before; None for fewer than two."""
    return Spread(float(logarithms(rates).std(ddof=1)), len(rates) - 1, "stored") if len(rates) > 1 else None


def difference(
    a: Values,
    b: Values,
    *,
    rounds_a: Sequence[Hashable] = (),
    rounds_b: Sequence[Hashable] = (),
    stored: Spread | None = None,
) -> Difference:
    """The mean of `b` less that of `a`, one value per run on each side.

    `rounds_a` and `rounds_b` name the round of one sweep in which each run was made: runs that share one were made one
    soon after the other. From PAIRED_ROUNDS shared rounds on the difference is taken within rounds (paired t). With
    fewer it is Welch's t, where the sides may spread differently; a side of one run borrows the other's spread. One run
    a side has only `stored`, of like runs on the same machine: then the interval is that of the difference of two
    single runs, sd * sqrt(2).
    """
    if not len(a) or not len(b):
        raise ValueError("needs at least one run on each side")
    shared = _shared(dict(zip(rounds_a, a, strict=False)), dict(zip(rounds_b, b, strict=False)))
    if len(shared) >= PAIRED_ROUNDS:
        by_round = np.asarray([after - before for before, after in shared])
        count, sd = len(shared), float(by_round.std(ddof=1))
        # A difference of two runs has sqrt(2) of the spread of one.
        spread = Spread(sd / math.sqrt(2), count - 1, "rounds")
        before, after = np.asarray(shared).mean(axis=0).tolist()
        return Difference(float(by_round.mean()), sd / math.sqrt(count), spread, (count, count), (before, after))
    means = float(np.mean(a)), float(np.mean(b))
    estimate = means[1] - means[0]
    counts = (len(a), len(b))
    if min(counts) > 1:
        parts = [float(np.var(side, ddof=1)) / len(side) for side in (a, b)]
        error = math.sqrt(sum(parts))
        pooled = math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
        return Difference(estimate, error, Spread(pooled, _welch(parts, counts), "runs"), counts, means)
    spread = stored
    if max(counts) >= LENDING_RUNS:
        lender = a if len(a) > len(b) else b
        spread = Spread(float(np.std(lender, ddof=1)), len(lender) - 1, "other side")
    error = None if spread is None else spread.sd * math.sqrt(1 / counts[0] + 1 / counts[1])
    return Difference(estimate, error, spread, counts, means)


def _shared(a: Mapping[Hashable, float], b: Mapping[Hashable, float]) -> list[tuple[float, float]]:
    return [(value, b[name]) for name, value in a.items() if name in b]


def _welch(parts: Sequence[float], counts: tuple[int, int]) -> float:
    """Degrees of freedom of a difference of means whose squared standard errors are `parts` (Welch-Satterthwaite)."""
    below = sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return sum(parts) ** 2 / below if below else float(sum(counts) - 2)
