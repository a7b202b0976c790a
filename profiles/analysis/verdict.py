"""What may be said of a difference between two sides of runs, and how many runs it takes to say more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from .between import PAIRED_ROUNDS, Difference, Spread, student_t

# Two sides are alike when their ratio is surely within this share of 1; also the effect that repeats are planned for.
MARGIN = 0.05
CONFIDENCE = 0.95
# Of a single run a side: its spread is of other runs, made at another time, and nothing averages what is unlike normal.
STRICT = 0.99
POWER = 0.8
# With two runs a side Welch's t has hardly a degree of freedom.
LEAST_REPEATS = 3
# More runs than this on each side are not asked for.
MOST_REPEATS = 1000
_QUANTILES = (np.arange(100) + 0.5) / 100

Word = Literal["higher", "lower", "no change", "cannot tell"]


@dataclass(frozen=True)
class Effect:
    """B / A - 1 with its interval between runs, what it says, and on which ground."""

    effect: float
    ci95: tuple[float, float] | None
    word: Word


def ratio_effect(difference: Difference, margin: float = MARGIN) -> Effect:
    """The effect that a difference of logarithms stands for.

    `higher` and `lower`: the interval leaves 0 out; for one run a side, held against a stored spread, that of 99 %
    does. `no change`: it lies within ±margin (on logarithms, so that swapping the sides changes nothing but the sign);
    one run a side never says so. `cannot tell`: neither, or there is no interval.
    """
    interval = difference.interval(CONFIDENCE)
    effect = math.expm1(difference.estimate)
    if interval is None:
        return Effect(effect, None, "cannot tell")
    low, high = interval
    single = difference.spread is not None and difference.spread.how == "stored"
    surely = difference.interval(STRICT) if single else interval
    assert surely is not None
    word: Word = "cannot tell"
    if surely[0] > 0:
        word = "higher"
    elif surely[1] < 0:
        word = "lower"
    elif not single and max(-low, high) < math.log1p(margin):
        word = "no change"
    return Effect(effect, (math.expm1(low), math.expm1(high)), word)


def repeats_needed(spread: Spread, effect: float = MARGIN) -> int | None:
    """Runs on each side with which an effect of that size is found with a probability of POWER; None for more than
    MOST_REPEATS.

    The spread is itself an estimate from few runs. So the power is averaged over what it may truly be: the variance
    is taken as sd² x degrees / chi²(degrees), over the quantiles of chi² (assurance; O'Hagan, Stevens & Campbell 2005,
    "Assurance in clinical trial design"). Planning by the estimate alone finds it less often than it says.
    """
    if spread.sd == 0:
        return LEAST_REPEATS
    sds = spread.sd * np.sqrt(spread.degrees / special.chdtri(spread.degrees, _QUANTILES))
    paired, low, high = spread.how == "rounds", LEAST_REPEATS, MOST_REPEATS
    if _power(high, sds, effect, paired) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        if _power(middle, sds, effect, paired) < POWER:
            low = middle + 1
        else:
            high = middle
    return max(low, PAIRED_ROUNDS) if paired else low


def _power(runs: int, sds: np.ndarray, effect: float, paired: bool) -> float:
    """Probability, mean over `sds`, that the interval of `runs` a side leaves 0 out on the side of the effect."""
    degrees = runs - 1 if paired else 2 * (runs - 1)
    shift = math.log1p(effect) / (sds * math.sqrt(2 / runs))
    limit = student_t(degrees, CONFIDENCE)
    # Further from 0 the power is 1 anyhow, and the noncentral t is not always finite.
    return float(np.mean(1 - special.nctdtr(degrees, np.minimum(shift, limit + 30), limit)))
