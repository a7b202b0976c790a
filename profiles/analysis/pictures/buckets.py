"""A series of any length as one of bounded length."""

from __future__ import annotations

import numpy as np

BUCKETS = 400
"""Points of a drawn series: a screen is hardly wider than twice that."""


def edges(count: int, most: int = BUCKETS) -> np.ndarray:
    """Where each bucket begins, and the end of the last: at most `most` buckets of sizes that differ by one at most."""
    buckets = min(count, most)
    return np.arange(buckets + 1, dtype=np.int64) * count // max(buckets, 1)


def reduced(values: np.ndarray, how: np.ufunc, most: int = BUCKETS) -> np.ndarray:
    """`values` along the last axis, each bucket as `how` makes it: np.add (a mean), np.minimum or np.maximum."""
    bounds = edges(values.shape[-1], most)
    found = how.reduceat(values, bounds[:-1], axis=-1) if values.shape[-1] else values
    return found / np.diff(bounds) if how is np.add else found
