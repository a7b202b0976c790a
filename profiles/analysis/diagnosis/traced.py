"""What the traces of a summary say of the devices' idle time, per step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..traces import whole
from .finding import Headroom

# Traced steps of which a spread is told.
LEAST_STEPS = 3


def trace_mean(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Seconds a traced step, mean over ranks: idle while nothing was launched, while launching, while loading, after
    the host had waited; exposed communication and copies; and the median delay of a launch. `step_seconds` is a traced
    step, `spread` twice the relative standard error of its mean, None below three steps. None where no trace shows
    devices."""
    rows = whole((summary.get("trace") or {}).get("per_rank", ()))
    rows = [row for row in rows if row["steps"] and any(device["idle"] for device in row["devices"])]
    if not rows:
        return None
    found: dict[str, list[float]] = {}
    for row in rows:
        device = max(row["devices"], key=lambda each: each["compute_seconds"])
        idle, steps = device["idle"] or {}, len(row["steps"])
        for name in ("not_launched_seconds", "launching_seconds", "loading_seconds", "after_sync_seconds"):
            found.setdefault(name, []).append((idle.get(name) or 0.0) / steps)
        for name in ("exposed_communication_seconds", "exposed_copies_seconds"):
            found.setdefault(name, []).append(device[name] / steps)
        if device["launch_delay_seconds"] is not None:
            found.setdefault("launch_delay_seconds", []).append(device["launch_delay_seconds"]["median"])
    # Ranks wait for each other: their steps are one series, not several.
    steps = min(len(row["steps"]) for row in rows)
    lengths = np.mean([[step["seconds"] for step in row["steps"][:steps]] for row in rows], axis=0)
    mean: dict[str, Any] = {name: float(np.mean(values)) for name, values in found.items()}
    mean.setdefault("launch_delay_seconds", None)
    spread = None
    if steps >= LEAST_STEPS:
        spread = min(1.0, 2 * float(np.std(lengths, ddof=1)) / max(float(lengths.mean()), 1e-12) / np.sqrt(steps))
    return {**mean, "step_seconds": float(lengths.mean()), "spread": spread}


def untraced(seconds: float, trace: Mapping[str, Any], step_seconds: float, how: str) -> Headroom:
    """What `seconds` of idle time in a traced step are in one that is not traced: the profiler slows the host, so that
    the step is longer, and the device idles for at most as much of it. Between none of what it is longer by and all."""
    longer = max(0.0, trace["step_seconds"] - step_seconds)
    low, high = max(0.0, seconds - longer), min(seconds, step_seconds)
    spread = trace["spread"]
    return Headroom(
        seconds=0.5 * (low + high),
        ci95=None if spread is None else (low * (1 - spread), min(high * (1 + spread), step_seconds)),
        method=f"{how} in the trace, whose steps take {trace['step_seconds'] / max(step_seconds, 1e-12):.2f} times as "
        "long as others",
    )
