"""Sets of time: each operation equals the same one on sets of single nanoseconds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scalelab.profiles.analysis.trace.intervals import common, joined, length, union, without

pieces = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=12)


def interval_set(rows: list[tuple[int, int]]) -> np.ndarray:
    begin = np.array([row[0] for row in rows], dtype=np.int64)
    return union(begin, begin + np.array([row[1] for row in rows], dtype=np.int64))


def moments(of: np.ndarray) -> set[int]:
    return {moment for begin, end in of.tolist() for moment in range(begin, end)}


def moments_of(rows: list[tuple[int, int]]) -> set[int]:
    return {moment for begin, took in rows for moment in range(begin, begin + took)}


@given(pieces)
def test_a_union_has_every_moment_once_in_intervals_that_do_not_touch(rows: list[tuple[int, int]]) -> None:
    found = interval_set(rows)
    assert moments(found) == moments_of(rows)
    assert length(found) == len(moments_of(rows))
    assert (found[1:, 0] > found[:-1, 1]).all()


@given(pieces, pieces)
def test_the_algebra_is_that_of_sets(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    a, b = interval_set(first), interval_set(second)
    assert moments(common(a, b)) == moments(a) & moments(b)
    assert moments(without(a, b)) == moments(a) - moments(b)
    assert moments(joined(a, b)) == moments(a) | moments(b)
    assert length(without(a, b)) + length(common(a, b)) == length(a)
