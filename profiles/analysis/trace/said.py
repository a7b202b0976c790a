"""What a trace says, as plain numbers: the part of a summary that comes from a profiler's trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .breakdown import Breakdown, breakdowns
from .events import Kind, Trace, shown
from .idle import launch_delays_ns, why_idle
from .intervals import length
from .nesting import exclusive_ns
from .syncs import host_syncs
from .window import profiler_steps, within

TOP = 20


def said_by(trace: Trace) -> dict[str, Any]:
    """Seconds, over the profiler's steps, all of them together; over the whole trace where it marks no step.

    Keys: `steps` with their seconds on the host; `devices`, each with where its time went and why it was idle;
    `kernels` and `operators` that took most of it; `host_syncs`; what could not be used of the file.
    """
    steps = profiler_steps(trace)
    chosen = within(trace, steps[0][1], steps[-1][2]) if steps else np.ones(len(trace), dtype=bool)
    shown, cut = trace.of(Kind.KERNEL, Kind.COLLECTIVE), trace.of(Kind.OPERATOR)
    shown, cut = shown[chosen[shown]], cut[chosen[cut]]
    return {
        "file": trace.path.name,
        "events": len(trace),
        "dropped": dict(trace.dropped),
        "damage": list(trace.damage),
        "steps": [{"number": number, "seconds": (end - begin) / 1e9} for number, begin, end in steps],
        "devices": [_device(trace, each) for each in breakdowns(trace, chosen)],
        "kernels": _top(trace, shown, (trace.end - trace.begin)[shown]),
        "operators": _top(trace, cut, exclusive_ns(trace, cut)),
        "host_syncs": [
            {
                "call": sync.call,
                "operator": sync.operator,
                "source": sync.source,
                "count": sync.count,
                "blocked_seconds": _seconds(sync.blocked_ns),
            }
            for sync in host_syncs(trace, chosen)[:TOP]
        ],
    }


def _device(trace: Trace, of: Breakdown) -> dict[str, Any]:
    idle, delays = why_idle(trace, of), launch_delays_ns(trace, of)
    return {
        "device": of.device,
        "span_seconds": of.span_ns / 1e9,
        "compute_seconds": length(of.compute) / 1e9,
        "exposed_communication_seconds": length(of.exposed_communication) / 1e9,
        "overlapped_communication_seconds": length(of.overlapped_communication) / 1e9,
        "communication_seconds": length(of.communication) / 1e9,
        "exposed_copies_seconds": length(of.exposed_copies) / 1e9,
        "idle_seconds": length(of.idle) / 1e9,
        "idle": None
        if idle is None
        else {
            "gaps": idle.gaps,
            "not_launched_seconds": idle.not_launched / 1e9,
            "loading_seconds": _seconds(idle.loading),
            "launching_seconds": idle.launching / 1e9,
            "on_device_seconds": idle.on_device / 1e9,
            "unknown_seconds": idle.unknown / 1e9,
        },
        "launch_delay_seconds": {
            name: float(np.percentile(delays, share)) / 1e9 for name, share in (("median", 50), ("p90", 90))
        }
        if len(delays)
        else None,
    }


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def _top(trace: Trace, chosen: np.ndarray, took: np.ndarray) -> list[dict[str, Any]]:
    """The names that took most time, with their calls and their share of the time of all."""
    total = np.bincount(trace.name[chosen], weights=took, minlength=len(trace.names))
    calls = np.bincount(trace.name[chosen], minlength=len(trace.names))
    whole = total.sum()
    order = [index for index in np.argsort(-total, kind="stable")[:TOP].tolist() if calls[index]]
    return [
        {
            "name": trace.names[index],
            "calls": int(calls[index]),
            "seconds": float(total[index]) / 1e9,
            "share": float(total[index] / whole) if whole else 0.0,
        }
        for index in order
    ]


def facts_of(trace: Trace) -> Mapping[str, Any]:
    """What the trace tells of its job: `rank`, `world_size`, `backend`, `device_name`; None for what it does not."""
    job = trace.metadata.get("distributedInfo")
    devices = trace.metadata.get("deviceProperties")
    job = job if isinstance(job, dict) else {}
    first = devices[0] if isinstance(devices, list) and devices and isinstance(devices[0], dict) else {}
    rank, world = job.get("rank"), job.get("world_size")
    return {
        "rank": rank if isinstance(rank, int) and rank >= 0 else None,
        "world_size": world if isinstance(world, int) and world > 0 else None,
        "backend": job.get("backend"),
        "device_name": shown(first["name"]) if isinstance(first.get("name"), str) else None,
    }
