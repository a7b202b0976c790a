"""In which order a sweep's runs are made: repeats interleaved, each round a shuffle of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence


def interleaved(cells: Sequence[str], repeats: int, seed: int) -> list[tuple[str, int]]:
    """(cell, repeat) for repeats 1 to `repeats`: one complete round after the other, so that what drifts hits all
    cells alike, and in each a random order, so that no cell always follows the same other.

    The order of a round depends on `seed` and its number alone: more repeats add rounds and change none.
    """
    order = []
    for repeat in range(1, repeats + 1):
        names = sorted(cells)
        random.Random(f"{seed}:{repeat}").shuffle(names)
        order += [(name, repeat) for name in names]
    return order
