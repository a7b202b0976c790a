"""The effects of a comparison: each number of both sides, their ratio, its interval between runs and its verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .between import Difference, Spread, difference, logarithms
from .compared import Side
from .reasons import Null
from .telling import tells, too_few
from .verdict import CONFIDENCE, Effect, ratio_effect

# A count of bytes does not vary as times do: peaks further apart than this are different.
COUNTED_MARGIN = 0.01


@dataclass(frozen=True)
class Measure:
    """A number per run. `words` turn what the interval says into a verdict."""

    name: str
    path: str
    words: Mapping[str, str]
    timed: bool = True


_COST = {"higher": "dearer", "lower": "cheaper"}
MEASURES = (
    Measure("step_seconds", "step_seconds.mean", {"higher": "slower", "lower": "faster"}),
    Measure("samples_per_second", "throughput.samples_per_second", {"higher": "faster", "lower": "slower"}),
    Measure("device_hours_per_million_samples", "cost.device_hours_per_million_samples", _COST),
    Measure("usd_per_million_samples", "cost.usd_per_million_samples", _COST),
    Measure("peak_memory_bytes", "memory.peak_bytes", {"higher": "more", "lower": "less"}, timed=False),
    Measure("mfu", "utilization.mfu", {"higher": "higher", "lower": "lower"}),
)


@dataclass(frozen=True)
class Against:
    """Both sides and how their values are held against each other."""

    a: Side
    b: Side
    stored: Spread | None
    margin: float
    why_no_spread: str

    def values(self, path: str) -> tuple[list[float], list[float]] | None:
        """One number per run on each side; None where a run lacks it."""
        found = [[run.at(path) for run in side.runs] for side in (self.a, self.b)]
        return None if any(value is None for side in found for value in side) else (found[0], found[1])

    def lacking(self, path: str) -> str:
        """Why `values` is None."""
        run = next(run for side in (self.a, self.b) for run in side.runs if run.at(path) is None)
        return f"{run.name}: {run.why_not(path)}"

    def of(self, path: str) -> Difference | None:
        """The difference of logarithms."""
        found = self.values(path)
        if found is None or min(map(min, found)) <= 0:
            return None
        return self._held(*(list(logarithms(side)) for side in found), stored=self.stored)

    def raw(self, a: Sequence[float], b: Sequence[float]) -> Difference:
        """The difference of values as they are, for what may be 0; one run a side has no interval then."""
        return self._held(a, b, stored=None)

    def _held(self, a: Sequence[float], b: Sequence[float], *, stored: Spread | None) -> Difference:
        rounds = [[run.round or ("", index) for index, run in enumerate(side.runs)] for side in (self.a, self.b)]
        in_sweeps = all(run.round for side in (self.a, self.b) for run in side.runs)
        rounds = rounds if in_sweeps else [[], []]
        return difference(a, b, rounds_a=rounds[0], rounds_b=rounds[1], stored=stored)


def effect_of(measure: Measure, against: Against, null: Null) -> dict[str, Any] | None:
    path = f"effects.{measure.name}"
    found, held = against.values(measure.path), against.of(measure.path)
    if found is None or held is None:
        null(path, against.lacking(measure.path) if found is None else "a run's value is 0")
        return None
    effect = ratio_effect(held, against.margin) if measure.timed else _counted(found)
    # One that tells the sides apart tells something, however wide it is.
    wide = effect.ci95 and effect.word == "cannot tell" and not tells([1 + end for end in effect.ci95])
    interval = None if wide or effect.ci95 is None else list(effect.ci95)
    if interval is None:
        why = against.why_no_spread if measure.timed else "counted, not timed: it has no spread of its own"
        null(f"{path}.ci95", too_few() if wide else why)
    # Of the runs that the effect is of.
    logs = held.means if measure.timed else [float(logarithms(side).mean()) for side in found]
    geometric = [math.exp(each) if measure.timed else round(math.exp(each)) for each in logs]
    words = {**measure.words, "no change": "no change", "cannot tell": "cannot tell"}
    return {
        "a": geometric[0],
        "b": geometric[1],
        "effect": effect.effect,
        "ci95": interval,
        "verdict": words[effect.word],
        "method": (held.spread.how if held.spread else None) if measure.timed else "counted",
    }


def _counted(found: tuple[list[float], list[float]]) -> Effect:
    """The effect between numbers that hardly vary: told by their ranges, apart by more than COUNTED_MARGIN or not."""
    a, b = (logarithms(side) for side in found)
    estimate = float(b.mean() - a.mean())
    margin = math.log1p(COUNTED_MARGIN)
    if max(a.max(), b.max()) - min(a.min(), b.min()) <= margin:
        word = "no change"
    elif b.min() - a.max() > margin:
        word = "higher"
    elif a.min() - b.max() > margin:
        word = "lower"
    else:
        word = "cannot tell"
    return Effect(math.expm1(estimate), None, word)


def exposed_share(against: Against, null: Null) -> dict[str, Any] | None:
    """The share of the step in which communication was exposed: a difference in shares, without a verdict."""
    found = against.values("phases.comm_exposed.share")
    if found is None:
        null("effects.comm_exposed_share", against.lacking("phases.comm_exposed.share"))
        return None
    held = against.raw(*found)
    interval = held.interval(CONFIDENCE)
    if interval is None:
        null("effects.comm_exposed_share.ci95", "a side has one run, and the other fewer than 3 to lend it a spread")
    return {
        "a": held.means[0],
        "b": held.means[1],
        "difference": held.estimate,
        "ci95": None if interval is None else list(interval),
    }
