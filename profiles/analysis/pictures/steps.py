"""Step by step: how long each took, which stand out, and how they are spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..load import Run
from .buckets import edges, reduced

BINS = 60
FAR_OUT = 3.0
"""Quartile ranges above the third quartile: Tukey's outer fence (Exploratory Data Analysis, 1977)."""
OUTLIERS_SHOWN = 12


def step_series(run: Run) -> dict[str, Any] | None:
    """Seconds of every training step that all ranks finished: mean over ranks, the fastest rank and the slowest.

    Over a bucket of several steps the mean is the steps' mean, the lowest their lowest, the highest their highest.
    """
    common = run.trained_steps
    if not common:
        return None
    seconds = run.trained([rank.steps.numbers["seconds"] for rank in run.ranks])
    bounds = edges(len(common))
    measured = run.ranks[0].steps.place
    warmup = [step for step in common if step not in measured]
    return {
        "of": len(common),
        "buckets": len(bounds) - 1,
        "first_step": [common[begin] for begin in bounds[:-1]],
        "mean": reduced(seconds.mean(axis=0), np.add).tolist(),
        "lowest": reduced(seconds.min(axis=0), np.minimum).tolist(),
        "highest": reduced(seconds.max(axis=0), np.maximum).tolist(),
        "warmup_until": warmup[-1] if warmup else None,
        "ranks": len(run.ranks),
    }


def histogram(run: Run) -> dict[str, Any] | None:
    """How many measured steps took how long, each the mean over ranks; those beyond the outer fence are named, with the
    rank that took longest and the phase in which it took most above its own median."""
    steps = run.complete_steps
    if len(steps) < 2:
        return None
    seconds = run.step_seconds.mean(axis=0)
    low, high = np.quantile(seconds, [0.25, 0.75])
    fence = high + FAR_OUT * (high - low)
    far = np.flatnonzero(seconds > fence)
    inside = seconds[seconds <= fence]
    counts, bounds = np.histogram(inside, bins=min(BINS, len(np.histogram_bin_edges(inside, "auto")) - 1))
    ordered = far[np.argsort(-seconds[far], kind="stable")][:OUTLIERS_SHOWN]
    return {
        "of": len(steps),
        "edges_seconds": bounds.tolist(),
        "counts": counts.tolist(),
        "fence_seconds": float(fence),
        "outliers": len(far),
        "outlier_seconds_share": float(seconds[far].sum() / seconds.sum()),
        "named": [_named(run, int(index)) for index in ordered],
    }


def _named(run: Run, index: int) -> dict[str, Any]:
    rank = int(run.step_seconds[:, index].argmax())
    above = {name: float(each[rank, index] - np.median(each[rank])) for name, each in run.phase_seconds.items()}
    phase = max(above, key=lambda name: above[name])
    return {
        "step": run.complete_steps[index],
        "seconds": float(run.step_seconds[:, index].mean()),
        "slowest_rank": run.ranks[rank].rank,
        "slowest_rank_seconds": float(run.step_seconds[rank, index]),
        "phase": phase if above[phase] > 0 else None,
        "above_median_seconds": above[phase] if above[phase] > 0 else None,
    }


def loss(values: Sequence[float | None] | None) -> dict[str, Any] | None:
    """A curve over optimizer steps from the first warm-up step on, means of buckets; None in it is not finite."""
    if not values:
        return None
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    bounds = edges(len(numbers))
    means = reduced(numbers, np.add)
    return {
        "of": len(numbers),
        "buckets": len(bounds) - 1,
        "first_step": bounds[:-1].tolist(),
        "mean": [float(each) if np.isfinite(each) else None for each in means],
    }
