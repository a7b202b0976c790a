"""What the traces of a summary say of the devices' idle time, per step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def trace_mean(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Seconds a traced step, mean over ranks: idle while nothing was launched, while launching, while loading, after
    the host had waited; exposed communication and copies; and the median delay of a launch. `spread` is the relative
    standard error of the traced steps' lengths. None where no trace shows devices."""
    rows = [row for row in (summary.get("trace") or {}).get("per_rank", ()) if row["unusable"] is None]
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
    lengths = [step["seconds"] for row in rows for step in row["steps"]]
    mean: dict[str, Any] = {name: float(np.mean(values)) for name, values in found.items()}
    mean.setdefault("launch_delay_seconds", None)
    spread = 2 * float(np.std(lengths)) / max(float(np.mean(lengths)), 1e-12) / np.sqrt(len(lengths))
    return {**mean, "spread": min(1.0, spread)}
