"""Sides drawn from runs that are alike in all: how many are called different, and how many once one is made slower."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scalelab.profiles.analysis.between import difference, stored_spread
from scalelab.profiles.analysis.verdict import MARGIN, MOST_REPEATS, ratio_effect, repeats_needed
from scipy import stats

from tests.verdict_score.runs import Made

PAIRS, MOST_DIFFERENT, LEAST_FOUND = 1000, 66, 800
PILOT, STORED, ROUNDS = 3, 5, 5
SLOWER = math.log1p(MARGIN)

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Line:
    """One figure. `holds` is None for one without a limit."""

    what: str
    count: int
    of: int
    holds: bool | None
    limit: str

    def row(self) -> str:
        interval = stats.binomtest(self.count, self.of).proportion_ci(0.95, "exact")
        told = {True: "ok", False: "MISSED", None: ""}[self.holds]
        bounds = f"{interval.low * 100:.1f} to {interval.high * 100:.1f} %"
        return f"| {self.what} | {self.of} | {self.count} | {bounds} | {told} {self.limit} |"


def scored(found: list[Made]) -> list[Line]:
    """Every figure, from the logarithms of the runs' mean steps."""
    logs = np.log([run.step_seconds for run in found])
    asked = [_asked(logs, number) for number in range(PAIRS)]
    middle, high = np.median(asked), max(asked)
    rounds = min(ROUNDS, len(logs) // 2)
    return [
        _alike(f"like runs, {PILOT} a side", lambda draw: draw.sides(PILOT), logs),
        _alike(f"like runs, 1 a side, spread stored from {STORED}", None, logs, _stored),
        _alike(
            f"like runs, as many a side as asked for (median {middle:.0f}, most {high})",
            lambda draw: draw.sides(asked[draw.number]), logs,
        ),
        _alike(
            f"like runs, {rounds} rounds of neighbours", None, logs,
            lambda draw: _rounds(draw, rounds) in ("higher", "lower"),
        ),
        _alike(
            "the same, called an improvement (`diagnose --verify` of a change that does nothing)", None, logs,
            lambda draw: _rounds(draw, rounds) == "lower",
        ),
        _found(f"{MARGIN:.0%} slower, as many a side as asked for", lambda draw: draw.sides(asked[draw.number]), logs),
        _told(
            f"{MARGIN:.0%} slower, {PILOT} a side",
            sum(_higher(*Draw(logs, number).sides(PILOT)) for number in range(PAIRS)),
        ),
        _told(
            "like runs, judged at 3 a side and, where that could not tell, again with the repeats asked for",
            sum(_looked_twice(Draw(logs, number)) for number in range(PAIRS)),
        ),
        _blocks(logs),
    ]  # fmt: skip


class Draw:
    """The `number`th draw from the runs."""

    def __init__(self, logs: np.ndarray, number: int, stream: int = 0) -> None:
        self.logs, self.number = logs, number
        self.generator = np.random.default_rng([number, stream])

    def sides(self, runs: int) -> Pair:
        """Two sides of `runs`, disjoint; with replacement where there are not as many runs."""
        again = 2 * runs > len(self.logs)
        drawn = self.generator.choice(self.logs, 2 * runs, replace=again)
        return drawn[:runs], drawn[runs:]


def _asked(logs: np.ndarray, number: int) -> int:
    """The repeats that `compare` asks for after PILOT runs a side; MOST_REPEATS where it asks for none."""
    spread = difference(*Draw(logs, number, stream=1).sides(PILOT)).spread
    assert spread is not None
    return repeats_needed(spread) or MOST_REPEATS


def _different(a: np.ndarray, b: np.ndarray) -> bool:
    return ratio_effect(difference(a, b)).word in ("higher", "lower")


def _higher(a: np.ndarray, b: np.ndarray) -> bool:
    return ratio_effect(difference(a, b + SLOWER)).word == "higher"


def _stored(draw: Draw) -> bool:
    drawn = draw.generator.choice(draw.logs, 2 + STORED, replace=False)
    held = difference(drawn[:1], drawn[1:2], stored=stored_spread(np.exp(drawn[2:])))
    return ratio_effect(held).word in ("higher", "lower")


def _rounds(draw: Draw, rounds: int) -> str:
    """The word on runs made one after the other, which of the two is B drawn by lot."""
    first = draw.generator.choice(len(draw.logs) // 2, rounds, replace=False) * 2
    swapped = draw.generator.integers(0, 2, rounds)
    a, b = draw.logs[first + swapped], draw.logs[first + 1 - swapped]
    held = difference(a, b, rounds_a=range(rounds), rounds_b=range(rounds))
    return ratio_effect(held).word


def _looked_twice(draw: Draw) -> bool:
    a, b = draw.sides(PILOT)
    held = difference(a, b)
    if (word := ratio_effect(held).word) != "cannot tell":
        return word in ("higher", "lower")
    assert held.spread is not None
    more = (repeats_needed(held.spread) or MOST_REPEATS) - PILOT
    if more <= 0:
        return False
    rest = np.setdiff1d(draw.logs, np.concatenate([a, b]))
    drawn = draw.generator.choice(rest, 2 * more, replace=2 * more > len(rest))
    return _different(np.concatenate([a, drawn[:more]]), np.concatenate([b, drawn[more:]]))


def _blocks(logs: np.ndarray) -> Line:
    """One side made before the other: every block of PILOT runs against the next."""
    starts = range(len(logs) - 2 * PILOT + 1)
    count = sum(_different(logs[i : i + PILOT], logs[i + PILOT : i + 2 * PILOT]) for i in starts)
    return Line(f"like runs, {PILOT} a side, one side made right after the other", count, len(starts), None, "")


def _alike(
    what: str, sides: Callable[[Draw], Pair] | None, logs: np.ndarray, judge: Callable[[Draw], bool] | None = None
) -> Line:
    judged = judge or (lambda draw: _different(*sides(draw)) if sides else False)
    count = sum(judged(Draw(logs, number)) for number in range(PAIRS))
    return Line(what, count, PAIRS, count <= MOST_DIFFERENT, f"called different, at most {MOST_DIFFERENT}")


def _found(what: str, sides: Callable[[Draw], Pair], logs: np.ndarray) -> Line:
    count = sum(_higher(*sides(Draw(logs, number))) for number in range(PAIRS))
    return Line(what, count, PAIRS, count >= LEAST_FOUND, f"found, at least {LEAST_FOUND}")


def _told(what: str, count: int) -> Line:
    return Line(what, count, PAIRS, None, "called different")
