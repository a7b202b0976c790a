"""The bytes of one step by kind: from the changes of single storages to the peak and a timeline. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..used import MEMORY_KINDS, MemoryPeak, MemoryTimeline

# Points of a timeline. In each of its parts the highest of every kind and of all together are kept, and the lowest.
MOST_POINTS = 500


@dataclass(frozen=True, slots=True)
class Change:
    """`kind` changed by `delta` bytes, `seconds` after the step's begin."""

    seconds: float
    kind: str
    delta: int
    phase: str | None
    module: str | None


def ledger(before: dict[str, int], changes: Sequence[Change]) -> tuple[MemoryPeak, MemoryTimeline]:
    """The step that began with `before` bytes of each kind. At the peak the kinds sum to the bytes of all storages,
    which are counted apart."""
    numbers = {kind: number for number, kind in enumerate(MEMORY_KINDS)}
    deltas = np.zeros((len(changes) + 1, len(MEMORY_KINDS)), dtype=np.int64)
    for kind, count in before.items():
        deltas[0, numbers[kind]] = count
    for row, change in enumerate(changes, 1):
        deltas[row, numbers[change.kind]] = change.delta
    held = deltas.cumsum(axis=0)
    total = np.cumsum([sum(before.values()), *(change.delta for change in changes)])
    assert (held.sum(axis=1) == total).all(), "the kinds do not sum to what is held"
    assert (held >= 0).all(), "a kind holds less than nothing"
    places = [(0.0, None, None), *((each.seconds, each.phase, each.module) for each in changes)]
    at = int(total.argmax())
    peak = MemoryPeak(
        bytes=int(total[at]),
        by_kind={kind: int(held[at, number]) for kind, number in numbers.items()},
        seconds=places[at][0],
        phase=places[at][1],
        module=places[at][2],
    )
    points = _extremes(held, total)
    timeline = MemoryTimeline(
        seconds=[places[point][0] for point in points],
        phase=[places[point][1] for point in points],
        by_kind={kind: held[points, number].tolist() for kind, number in numbers.items()},
    )
    return peak, timeline


def _extremes(held: np.ndarray, total: np.ndarray) -> list[int]:
    """At most MOST_POINTS rows of `held` (instants, kinds), in order, the first and the last among them."""
    count, kinds = held.shape
    if count <= MOST_POINTS:
        return list(range(count))
    parts = (MOST_POINTS - 2) // (kinds + 2)
    edges = np.linspace(0, count, parts + 1).astype(int)
    points = {0, count - 1}
    for begin, end in itertools.pairwise(edges.tolist()):
        points |= {begin + int(index) for index in held[begin:end].argmax(axis=0)}
        points |= {begin + int(total[begin:end].argmax()), begin + int(total[begin:end].argmin())}
    return sorted(points)
