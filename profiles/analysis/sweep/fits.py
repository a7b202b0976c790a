"""Amdahl's law and the universal scalability law, fitted to the throughput of several world sizes.

    C(N) = N / (1 + a (N - 1) + b N (N - 1))        Gunther 2007, "Guerrilla Capacity Planning", ch. 5
    a contention, b coherency; b = 0 is Amdahl 1967, with a the serial fraction

With X(N) = X(1) C(N), device-seconds per sample N / X(N) = (1 + a (N - 1) + b N (N - 1)) / X(1) are linear in three
terms that are not negative: least squares of the relative error finds them, from no start. The best such solution is an
unrestricted one of some of the terms, so that all choices of them are looked through, the fewest terms first: a term
more is taken only where it lowers the squares by more than rounding does, else exact data of Amdahl's law would have a
coherency of 1e-16, and a knee at that.

Intervals: 1,000 draws of the means of the world sizes, by residuals of runs from the mean of their world size on
logarithms, pooled, widened by sqrt(n / (n - 1)) and by Student's t over the normal's for their few degrees of freedom.
They tell the spread between runs, and nothing of whether the law holds beyond what was measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

AMDAHL_TERMS, USL_TERMS = 2, 3
DRAWS = 1000
QUANTILES = (0.025, 0.975)
# Squares of relative errors that fall by less, as a share and for each point, fall by rounding.
LEAST_GAIN = 1e-9
ROUNDING = 1e-24

# Functions of coefficients take one row of them or many, and give a number for each.
OfTerms = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Fit:
    """Coefficients of device-seconds per sample, a row of `drawn` for each draw (none where no world size had two
    runs); `residual` is the root mean square of the relative error over runs."""

    terms: np.ndarray
    drawn: np.ndarray
    world_sizes: list[int]
    residual: float
    degrees_of_freedom: int

    def value(self, of: OfTerms) -> float | None:
        """None where it is infinite."""
        found = float(of(self.terms))
        return found if math.isfinite(found) else None

    def interval(self, of: OfTerms) -> list[float | None] | None:
        """95 % of the draws; an end that is infinite is None. None where nothing was drawn."""
        if not len(self.drawn):
            return None
        # "nearest": between a number and infinity there is nothing.
        low, high = np.quantile(of(self.drawn), QUANTILES, method="nearest").tolist()
        return [each if math.isfinite(each) else None for each in (low, high)]


def fit(by_world: Mapping[int, Sequence[float]], terms: int, seed: int = 0) -> Fit:
    """Of device-seconds per sample, one number per run, by world size; at least as many sizes as terms."""
    sizes = sorted(by_world)
    assert len(sizes) >= terms
    worlds = np.array([size for size in sizes for _ in by_world[size]], dtype=np.float64)
    seconds = np.array([value for size in sizes for value in by_world[size]], dtype=np.float64)
    (found,) = _solve(worlds, seconds[None], terms)
    errors = _columns(worlds, terms) @ found / seconds - 1
    return Fit(
        terms=found,
        drawn=_draw(by_world, terms, seed),
        world_sizes=sizes,
        residual=float(np.sqrt(np.mean(errors**2))),
        degrees_of_freedom=len(sizes) - terms,
    )


def _columns(worlds: np.ndarray, terms: int) -> np.ndarray:
    return np.stack([np.ones_like(worlds), worlds - 1, worlds * (worlds - 1)], axis=-1)[..., :terms]


def _solve(worlds: np.ndarray, seconds: np.ndarray, terms: int) -> np.ndarray:
    """The coefficients for each row of `seconds`. The constant is always among them."""
    found = np.zeros((len(seconds), terms))
    least = np.full(len(seconds), math.inf)
    choices = itertools.product((False, True), repeat=terms - 1)
    for others in sorted(choices, key=sum):
        chosen = np.array([True, *others])
        columns = _columns(worlds, terms)[:, chosen] / seconds[:, :, None]
        solved = np.linalg.pinv(columns).sum(axis=2)
        errors = np.einsum("rnk,rk->rn", columns, solved) - 1
        squares = np.where((solved >= 0).all(axis=1), (errors**2).sum(axis=1), math.inf)
        better = squares < least * (1 - LEAST_GAIN) - len(worlds) * ROUNDING
        found[better] = 0
        found[np.ix_(better, chosen)] = solved[better]
        least[better] = squares[better]
    return found


def _draw(by_world: Mapping[int, Sequence[float]], terms: int, seed: int) -> np.ndarray:
    sizes = sorted(by_world)
    logs = [np.log(by_world[size]) for size in sizes]
    degrees = sum(len(each) - 1 for each in logs)
    if not degrees:
        return np.empty((0, terms))
    widening = float(special.stdtrit(degrees, QUANTILES[1]) / special.ndtri(QUANTILES[1]))
    residuals = np.concatenate(
        [(each - each.mean()) * math.sqrt(len(each) / (len(each) - 1)) * widening for each in logs if len(each) > 1]
    )
    generator = np.random.Generator(np.random.Philox(seed))
    moved = [each.mean() + generator.choice(residuals, size=(DRAWS, len(each))).mean(axis=1) for each in logs]
    return _solve(np.array(sizes, dtype=np.float64), np.exp(np.stack(moved, axis=1)), terms)


def cost(terms: np.ndarray, world_size: float) -> np.ndarray:
    """Device-seconds per sample."""
    return terms @ _columns(np.array(world_size, dtype=np.float64), terms.shape[-1])


def contention(terms: np.ndarray) -> np.ndarray:
    return terms[..., 1] / terms[..., 0]


def coherency(terms: np.ndarray) -> np.ndarray:
    return terms[..., 2] / terms[..., 0] if terms.shape[-1] > AMDAHL_TERMS else np.zeros(terms.shape[:-1])


def knee(terms: np.ndarray) -> np.ndarray:
    """The world size of the highest throughput, sqrt((1 - a) / b), at least 1; infinite where it always rises."""
    a, b = contention(terms), coherency(terms)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.sqrt(np.maximum(0.0, 1 - a) / b)
    return np.where(a >= 1, 1.0, np.where(b > 0, np.maximum(1.0, place), math.inf))


def affordable(terms: np.ndarray, seconds: np.ndarray | float) -> np.ndarray:
    """The largest world size, not a whole number, at which a sample costs at most `seconds` of a device; 0 where it
    costs more at 1, infinite where it never does."""
    linear = terms[..., 1]
    square = terms[..., 2] if terms.shape[-1] > AMDAHL_TERMS else np.zeros(terms.shape[:-1])
    left = seconds - terms[..., 0]
    # square n^2 + (linear + square) n = left, with n = N - 1; in the form that stands a square of 0.
    b = linear + square
    with np.errstate(divide="ignore", invalid="ignore"):
        more = 2 * left / (b + np.sqrt(np.maximum(0.0, b * b + 4 * square * left)))
    return np.where(left < 0, 0.0, np.where(b > 0, 1 + more, math.inf))
