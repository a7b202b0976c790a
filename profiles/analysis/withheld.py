"""What is left out of a summary whose run trained something else than it should: every figure of its speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .parity import PARITY
from .reasons import Null

# Sections whose numbers are all of time, or made of it.
SECTIONS = ("throughput", "step_seconds", "phases", "detail", "cost", "utilization")
# Sections that are there or not.
WHOLE = ("counterfactual", "overhead", "trace")
# What numbers of `comm` and `per_rank` are named that are of time.
SPEEDS = ("seconds", "bandwidth", "share", "straggler", "phases")


def withheld(summary: Mapping[str, Any], status: Mapping[str, Any], null: Null) -> dict[str, Any]:
    """`summary` without figures of speed where `status` says that losses left the tolerance; else as it is."""
    cause = str(status.get("cause") or "")
    if not cause.startswith(PARITY):
        return dict(summary)
    found: dict[str, Any] = {**summary, **dict.fromkeys(WHOLE)}
    for name in SECTIONS:
        found[name] = {key: value if isinstance(value, str) else None for key, value in found[name].items()}
    found["comm"] = _without_speeds(found["comm"])
    found["per_rank"] = [_without_speeds(row) for row in found["per_rank"]]
    found["quality"] = {**found["quality"], "seconds_to_target": None, "usd_to_target": None}
    parts = {**{name: found[name] for name in (*SECTIONS, "comm")}, "per_rank": (found["per_rank"] or [{}])[0]}
    gone = [f"{name}.{key}" for name, part in parts.items() for key, value in part.items() if value is None]
    for path in (*gone, *WHOLE, "quality.seconds_to_target"):
        null(path, cause)
    return found


def _without_speeds(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if any(word in key for word in SPEEDS) else value for key, value in row.items()}
