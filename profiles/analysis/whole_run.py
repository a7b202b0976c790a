"""The whole of a run, from the making of its folder to rank 0's last record: start-up, warm-up and all else that is not
steady state. Rank 0's timeline, times the ranks."""

from __future__ import annotations

from typing import Any

from .load import RankRecords, Run
from .reasons import Null, nulls

SECONDS_PER_HOUR, MILLION = 3600.0, 1e6
FIELDS = ("seconds", "device_hours", "samples", "device_hours_per_million_samples")


def whole_run(run: Run, null: Null) -> dict[str, Any] | None:
    """Seconds from begin to end by part, which sum to all; the device-hours they took; and the samples trained on."""
    found = _ends(run)
    if isinstance(found, str):
        null("cost.whole_run", found)
        return None
    rank, began, ended = found
    steps, seconds = rank.steps, rank.steps.numbers["seconds"]
    parts = {
        "start_up": float(steps.begin_ns[0] * 1e-9 - steps.numbers["start_seconds"][0]) - began,
        "warmup": float(seconds[~steps.measured].sum()),
        "measured": float(seconds[steps.measured].sum()),
    }
    for event in rank.events:
        if event.event != "profiler":
            parts[event.event] = parts.get(event.event, 0.0) + event.seconds
    parts["after_training"] = ended - began - sum(parts.values())
    whole, world = ended - began, run.run_json["world_size"]
    samples = int(sum(each.steps.numbers["samples"].sum() for each in run.ranks))
    hours = world * whole / SECONDS_PER_HOUR
    if not samples:
        nulls("cost.whole_run", FIELDS[2:], "samples were not counted", null)
    return {
        "seconds": whole,
        "parts": [{"part": name, "seconds": each, "share": each / whole} for name, each in parts.items()],
        "device_hours": hours,
        "samples": samples or None,
        "device_hours_per_million_samples": hours / samples * MILLION if samples else None,
    }


def _ends(run: Run) -> tuple[RankRecords, float, float] | str:
    """Rank 0, and when the run began and ended on its host's monotonic clock; or why that is not known."""
    if run.missing_ranks:
        return run.why_no_step
    rank = next((rank for rank in run.ranks if rank.rank == 0), None)
    began = run.run_json.get("began")
    if rank is None or not len(rank.steps) or rank.steps.begin_ns[0] < 0:
        return "no step of rank 0 was recorded"
    if began is None or rank.start is None or began["boot_id"] != rank.start.boot_id:
        return "when the run began was not recorded on rank 0's clock"
    if rank.end is None or rank.end.monotonic_seconds is None:
        return "the run did not end in order" if rank.end is None else "when the run ended was not recorded"
    return rank, began["monotonic_seconds"], rank.end.monotonic_seconds
