"""Amdahl's law and the universal scalability law, fitted to the throughput of several world sizes.

    C(N) = N / (1 + a (N - 1) + b N (N - 1))        Gunther 2007, "Guerrilla Capacity Planning", ch. 5
    a contention, b coherency; b = 0 is Amdahl 1967, with a the serial fraction

With X(N) = X(1) C(N), device-seconds per sample N / X(N) = (1 + a (N - 1) + b N (N - 1)) / X(1) are linear in three
terms that are not negative: least squares of the relative error finds them (scipy.optimize.nnls), from no start.

Intervals: 1,000 draws of the means of the world sizes, by residuals of runs from the mean of their world size on
logarithms, pooled, widened by sqrt(n / (n - 1)) and by Student's t over the normal's for their few degrees of freedom.
They tell the spread between runs, and nothing of whether the law holds beyond what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

AMDAHL_TERMS, USL_TERMS = 2, 3
DRAWS = 1000
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Fit:
    """Coefficients of device-seconds per sample, a row of `drawn` for each draw (none where no world size had two
    runs); `residual` is the root mean square of the relative error over runs."""

    terms: np.ndarray
    drawn: np.ndarray
    world_sizes: list[int]
    residual: float
    degrees_of_freedom: int

    def interval(self, values: np.ndarray) -> list[float | None] | None:
        """95 % of `values`, one for each draw; an end that is infinite is null. None where nothing was drawn."""
        if not len(values):
            return None
        # "nearest": between a number and infinity there is nothing.
        low, high = np.quantile(values, QUANTILES, method="nearest")
        return [float(each) if math.isfinite(each) else None for each in (low, high)]

    def each(self, value: Callable[[np.ndarray], float]) -> np.ndarray:
        """`value`, a function of coefficients, for each draw."""
        return np.array([value(terms) for terms in self.drawn], dtype=np.float64)


def fit(by_world: Mapping[int, Sequence[float]], terms: int, seed: int = 0) -> Fit:
    """Of device-seconds per sample, one number per run, by world size; at least as many sizes as terms."""
    sizes = sorted(by_world)
    assert len(sizes) >= terms
    worlds = np.array([size for size in sizes for _ in by_world[size]], dtype=np.float64)
    seconds = np.array([value for size in sizes for value in by_world[size]], dtype=np.float64)
    found = _solve(worlds, seconds, terms)
    errors = _columns(worlds, terms) @ found / seconds - 1
    return Fit(
        terms=found,
        drawn=_draw(by_world, terms, seed),
        world_sizes=sizes,
        residual=float(np.sqrt(np.mean(errors**2))),
        degrees_of_freedom=len(sizes) - terms,
    )


def _columns(worlds: np.ndarray, terms: int) -> np.ndarray:
    return np.stack([np.ones_like(worlds, dtype=np.float64), worlds - 1, worlds * (worlds - 1)], axis=1)[:, :terms]


def _solve(worlds: np.ndarray, seconds: np.ndarray, terms: int) -> np.ndarray:
    columns = _columns(worlds, terms) / seconds[:, None]
    # Scaled to like sizes: the solver's own tolerance is absolute.
    scale = np.linalg.norm(columns, axis=0)
    scale[scale == 0] = 1
    return optimize.nnls(columns / scale, np.ones(len(seconds)))[0] / scale


def _draw(by_world: Mapping[int, Sequence[float]], terms: int, seed: int) -> np.ndarray:
    sizes = np.array(sorted(by_world), dtype=np.float64)
    logs = [np.log(by_world[int(size)]) for size in sizes]
    degrees = sum(len(each) - 1 for each in logs)
    if not degrees:
        return np.empty((0, terms))
    widening = float(stats.t.ppf(QUANTILES[1], degrees) / stats.norm.ppf(QUANTILES[1]))
    residuals = np.concatenate(
        [(each - each.mean()) * math.sqrt(len(each) / (len(each) - 1)) * widening for each in logs if len(each) > 1]
    )
    generator = np.random.Generator(np.random.Philox(seed))
    means = np.array([each.mean() for each in logs])
    moved = np.stack([generator.choice(residuals, size=(DRAWS, len(each))).mean(axis=1) for each in logs], axis=1)
    return np.array([_solve(sizes, np.exp(means + each), terms) for each in moved])


def cost(terms: np.ndarray, world_size: int) -> float:
    """Device-seconds per sample."""
    return float(_columns(np.array([world_size]), len(terms))[0] @ terms)


def contention(terms: np.ndarray) -> float:
    return float(terms[1] / terms[0]) if terms[0] else math.inf


def coherency(terms: np.ndarray) -> float:
    return float(terms[2] / terms[0]) if terms[0] and len(terms) > AMDAHL_TERMS else 0.0


def knee(terms: np.ndarray) -> float:
    """The world size of the highest throughput, sqrt((1 - a) / b), at least 1; infinite where it always rises."""
    a, b = contention(terms), coherency(terms)
    if b == 0:
        return math.inf if a < 1 else 1.0
    return max(1.0, math.sqrt(max(0.0, 1 - a) / b))


def affordable(terms: np.ndarray, seconds: float) -> float:
    """The largest world size, not a whole number, at which a sample costs at most `seconds` of a device; 0 where it
    costs more at 1, infinite where it never does."""
    constant, linear, square = (*map(float, terms), 0.0)[:3]
    left = seconds - constant
    if left < 0:
        return 0.0
    # square N (N - 1) + linear (N - 1) = left
    if square == 0:
        return math.inf if linear == 0 else 1 + left / linear
    b, c = linear - square, -(linear + left)
    return (-b + math.sqrt(b * b - 4 * square * c)) / (2 * square)
