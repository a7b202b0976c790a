"""What is said of two sides of runs is wrong as rarely as it claims, and is said as often as it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scalelab.profiles.analysis.between import (
    PAIRED_ROUNDS,
    Spread,
    difference,
    logarithms,
    mean_between_runs,
    stored_spread,
)
from scalelab.profiles.analysis.verdict import LEAST_REPEATS, MARGIN, MOST_REPEATS, Effect, ratio_effect, repeats_needed
from scipy import stats

TRUE = math.log1p(MARGIN)
# Of 1000 pairs at most 66: at a true 5 % more are found once in 2000 times among 2000 pairs.
PAIRS, MOST_FALSE = 2000, 132
seconds = st.lists(st.floats(0.01, 10), min_size=1, max_size=8)


def verdict(a: np.ndarray, b: np.ndarray, paired: bool = False) -> Effect:
    rounds = range(len(a)) if paired else ()
    return ratio_effect(difference(a, b, rounds_a=rounds, rounds_b=rounds))


def different(words: list[str]) -> int:
    return sum(word in ("higher", "lower") for word in words)


def drawn(kind: str, runs: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the times of two sides of like runs."""
    shape = (PAIRS, runs)
    a, b = generator.normal(0, 0.03, shape), generator.normal(0, 0.03, shape)
    if kind == "outliers":  # one run in seven is slow
        slow = [(generator.random(shape) < 0.15) * generator.exponential(0.1, shape) for _ in "ab"]
        return a + slow[0], b + slow[1]
    if kind == "drift":  # the machine changes from round to round
        drift = np.cumsum(generator.normal(0, 0.03, shape), axis=1)
        return a + drift, b + drift
    return (a / 2, b) if kind == "one steadier" else (a, b)


@pytest.mark.parametrize("kind", ["normal", "outliers", "drift", "one steadier"])
@pytest.mark.parametrize("runs", [2, 3, 6])
@pytest.mark.parametrize("paired", [False, True])
def test_like_runs_are_rarely_called_different(kind: str, runs: int, paired: bool) -> None:
    """At most 66 of 1000, whatever the runs' spread looks like, by rounds or not."""
    a, b = drawn(kind, runs, np.random.default_rng(runs))
    words = [verdict(x, y, paired).word for x, y in zip(a, b, strict=True)]
    assert different(words) <= MOST_FALSE


@pytest.mark.parametrize("sd", [0.01, 0.02, 0.04])
def test_the_repeats_asked_for_find_the_effect(sd: float) -> None:
    """Three runs a side name the repeats; in at least 80 % of all cases those find a true effect of 5 %."""
    generator, found, tries = np.random.default_rng(7), 0, 400
    for _ in range(tries):
        spread = difference(*generator.normal(0, sd, (2, 3))).spread
        assert spread is not None
        runs = repeats_needed(spread) or MOST_REPEATS
        a, b = generator.normal(0, sd, (2, runs))
        found += verdict(a, b + TRUE).word == "higher"
    assert found >= 0.8 * tries


def test_planning_by_the_estimate_alone_would_find_it_less_often() -> None:
    """The property above is no accident of large numbers: without the average over the spread it fails."""
    generator, found, tries = np.random.default_rng(7), 0, 400
    for _ in range(tries):
        spread = difference(*generator.normal(0, 0.02, (2, 3))).spread
        assert spread is not None
        runs = repeats_needed(Spread(spread.sd, 1e6, "runs")) or MOST_REPEATS
        a, b = generator.normal(0, 0.02, (2, runs))
        found += verdict(a, b + TRUE).word == "higher"
    assert found < 0.8 * tries


def test_drift_is_taken_out_by_rounds() -> None:
    """Where the machine changes from round to round, rounds find an effect more often than runs do."""
    a, b = drawn("drift", 8, np.random.default_rng(1))
    found = [
        sum(verdict(x, y + TRUE, paired).word == "higher" for x, y in zip(a, b, strict=True))
        for paired in (False, True)
    ]
    assert found[1] > 1.5 * found[0]


@given(seconds, seconds)
def test_swapping_the_sides_swaps_the_verdict(a: list[float], b: list[float]) -> None:
    """The effect turns into its inverse, and so does its interval; `no change` and `cannot tell` stay."""
    forth, back = (ratio_effect(difference(logarithms(x), logarithms(y))) for x, y in ((a, b), (b, a)))
    assert forth.effect == pytest.approx(1 / (1 + back.effect) - 1, abs=1e-9)
    assert forth.word == {"higher": "lower", "lower": "higher"}.get(back.word, back.word)


@given(seconds, seconds, st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(a: list[float], b: list[float], unit: float) -> None:
    """Effect and interval are the same in any unit."""
    scaled = ([value * unit for value in side] for side in (a, b))
    first, second = (ratio_effect(difference(*map(logarithms, sides)), 0.03) for sides in ((a, b), tuple(scaled)))
    assert first.effect == pytest.approx(second.effect, rel=1e-6, abs=1e-9)
    if first.ci95 is not None and first.ci95[1] < 1e6:
        assert second.ci95 is not None
        assert np.log1p(first.ci95) == pytest.approx(np.log1p(second.ci95), rel=1e-3, abs=1e-6)


def test_one_run_a_side_cannot_be_told_by_itself() -> None:
    """However far apart they are: nothing says how much like runs differ."""
    found = difference([0.0], [3.0])
    assert found.interval() is None
    assert ratio_effect(found).word == "cannot tell"


def test_one_run_a_side_is_held_against_the_stored_spread() -> None:
    """A verdict takes more than the 99 % interval of the difference of two single runs, with the spread's degrees."""
    stored = stored_spread([10.0, 10.2, 9.9, 10.1, 9.8])
    assert stored is not None
    limit = stats.t.ppf(0.995, 4) * np.log([10.0, 10.2, 9.9, 10.1, 9.8]).std(ddof=1) * math.sqrt(2)
    assert ratio_effect(difference([0.0], [limit * 1.01], stored=stored)).word == "higher"
    assert ratio_effect(difference([0.0], [limit * 0.99], stored=stored)).word == "cannot tell"
    assert stored_spread([10.0]) is None


def test_one_run_a_side_never_says_that_two_are_alike() -> None:
    """Alone, equal times on a steady machine may be chance; with a second run a side they are a statement."""
    steady, one = Spread(0.001, 4, "stored"), np.log([1.0])
    assert ratio_effect(difference(one, one, stored=steady)).word == "cannot tell"
    assert verdict(np.log([1.0, 1.001]), np.log([1.001, 1.0])).word == "no change"


def test_two_single_runs_are_rarely_called_different_by_a_stored_spread() -> None:
    """Also when that spread comes from five runs alone."""
    generator = np.random.default_rng(3)
    words = []
    for _ in range(PAIRS):
        a, b, *kept = generator.normal(0, 0.03, 7)
        words.append(ratio_effect(difference([a], [b], stored=stored_spread(np.exp(kept)))).word)
    assert different(words) <= MOST_FALSE


def test_a_side_of_one_run_borrows_the_spread_of_the_other() -> None:
    """From three runs on; and like runs are called different as rarely as elsewhere."""
    generator = np.random.default_rng(4)
    draws = generator.normal(0, 0.03, (PAIRS, 6))
    words = [verdict(row[:1], row[1:]).word for row in draws]
    assert 0 < different(words) <= MOST_FALSE
    assert difference([0.0], [0.0, 1.0]).spread is None


def test_no_change_is_a_statement_of_its_own() -> None:
    """It takes an interval within the margin: no difference found among few or wide runs is `cannot tell`."""
    steady = np.array([0.0, 0.002, -0.002, 0.001])
    assert verdict(steady, steady[::-1]).word == "no change"
    assert verdict(steady * 30, steady[::-1] * 30).word == "cannot tell"
    # An interval that passes the margin to one side alone is as little within it.
    for shift in (0.03, -0.03):
        assert verdict(steady * 12, steady[::-1] * 12 + shift).word == "cannot tell"
    assert ratio_effect(difference(steady, steady[::-1]), margin=0.001).word == "cannot tell"


def test_a_change_of_the_margin_is_rarely_called_no_change() -> None:
    """At most 2.5 % of true effects as large as the margin."""
    generator = np.random.default_rng(5)
    a, b = generator.normal(0, 0.01, (2, PAIRS, 4))
    words = [verdict(x, y + TRUE).word for x, y in zip(a, b, strict=True)]
    assert words.count("no change") <= 0.033 * PAIRS


def test_runs_without_any_spread() -> None:
    """Equal to the last digit, two sides are alike or they are not; two repeats tell."""
    same = difference([0.0, 0.0], [0.0, 0.0])
    assert ratio_effect(same).word == "no change"
    assert ratio_effect(difference([0.0, 0.0], [0.01, 0.01])).word == "higher"
    assert same.spread is not None
    assert repeats_needed(same.spread) == LEAST_REPEATS


def test_more_spread_asks_for_more_repeats_and_too_much_for_none() -> None:
    """A spread known from fewer runs asks for more too."""
    asked = [repeats_needed(Spread(sd, 4, "runs")) for sd in (0.005, 0.01, 0.02, 0.04)]
    assert asked == sorted(asked, key=lambda each: each or 0)
    assert (repeats_needed(Spread(0.02, 2, "runs")) or 0) > (repeats_needed(Spread(0.02, 20, "runs")) or 0)
    assert repeats_needed(Spread(0.5, 4, "runs")) is None


def test_rounds_pair_only_where_both_sides_share_enough_of_them() -> None:
    """Rounds of which one side lacks its run are left out; too few of them are not paired at all."""
    values = np.random.default_rng(0).normal(0, 0.03, 2 * PAIRED_ROUNDS).reshape(2, -1)
    rounds = [("sweep", index) for index in range(PAIRED_ROUNDS)]
    found = difference(*values, rounds_a=rounds, rounds_b=rounds)
    assert found.spread is not None
    assert found.spread.how == "rounds"
    other = [("another", index) for index in range(PAIRED_ROUNDS)]
    found = difference(*values, rounds_a=rounds, rounds_b=other)
    assert found.spread is not None
    assert found.spread.how == "runs"


def test_numbers_that_are_no_times_are_refused() -> None:
    """0, negative, not finite, or none at all."""
    for values in ([], [0.0], [-1.0], [math.nan], [math.inf]):
        with pytest.raises(ValueError, match="positive"):
            mean_between_runs(values)
