"""Sets of time, as sorted intervals that do not touch: int64 arrays (n, 2) of begins and ends, half open."""

from __future__ import annotations

import numpy as np

NONE = np.empty((0, 2), dtype=np.int64)


def union(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The set that the intervals [begin, end), in any order and overlapping, cover together."""
    kept = end > begin
    begin, end = begin[kept], end[kept]
    if not len(begin):
        return NONE
    order = np.argsort(begin, kind="stable")
    begin, reached = begin[order], np.maximum.accumulate(end[order])
    opens = np.concatenate(([True], begin[1:] > reached[:-1]))
    last = np.concatenate((opens[1:], [True]))
    return np.stack((begin[opens], reached[last]), axis=1)


def joined(*sets: np.ndarray) -> np.ndarray:
    """What is in any of `sets`."""
    return union(np.concatenate([each[:, 0] for each in sets]), np.concatenate([each[:, 1] for each in sets]))


def length(of: np.ndarray) -> int:
    """How much time is in the set."""
    return int((of[:, 1] - of[:, 0]).sum())


def common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What is in both sets."""
    if not len(a) or not len(b):
        return NONE
    # For each interval of a, those of b that end behind its begin and begin before its end.
    first = np.searchsorted(b[:, 1], a[:, 0], side="right")
    count = np.maximum(np.searchsorted(b[:, 0], a[:, 1], side="left") - first, 0)
    of_a = np.repeat(np.arange(len(a)), count)
    of_b = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    return np.stack((np.maximum(a[of_a, 0], b[of_b, 0]), np.minimum(a[of_a, 1], b[of_b, 1])), axis=1)


def without(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What is in `a` and not in `b`."""
    if not len(a) or not len(b):
        return a
    begin, end = int(min(a[0, 0], b[0, 0])) - 1, int(max(a[-1, 1], b[-1, 1])) + 1
    edges = np.concatenate(([begin], b.ravel(), [end]))
    return common(a, edges.reshape(-1, 2))
