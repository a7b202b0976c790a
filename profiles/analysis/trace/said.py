"""What a trace says, as plain numbers: the part of a summary that comes from a profiler's trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .breakdown import Breakdown, breakdowns, of_a_gpu_job
from .events import Kind, Trace, shown
from .idle import launch_delays_ns, why_idle
from .intervals import length
from .nesting import exclusive_ns
from .syncs import host_syncs
from .window import profiler_steps, step_ns, within

TOP = 20
# No job is larger; what says so is damaged.
MOST_RANKS = 1 << 24
NO_KERNELS = "the trace is of a job on GPUs and holds no kernel: what its devices did is not known"
NOTHING_RAN = "the trace holds no operator"


def said_by(trace: Trace) -> dict[str, Any]:
    """Seconds, over the profiler's steps, all of them together; over the whole trace where it marks no step.

    Keys: `steps` with their seconds on the host; `devices`, each with where its time went and why it was idle;
    `kernels` and `operators` that took most of it; `host_syncs`; what could not be used of the file.
    """
    steps = profiler_steps(trace)
    chosen = within(trace, steps[0][1], steps[-1][2]) if steps else np.ones(len(trace), dtype=bool)
    operators = trace.of(Kind.OPERATOR)
    marks = trace.named(Kind.OPERATOR, "ProfilerStep#")
    kernels, operators = trace.of(Kind.KERNEL, Kind.COLLECTIVE), np.setdiff1d(operators, marks, assume_unique=True)
    kernels, operators = kernels[chosen[kernels]], operators[chosen[operators]]
    devices = breakdowns(trace, chosen)
    return {
        "file": trace.path.name,
        "events": len(trace),
        "dropped": dict(trace.dropped),
        "damage": [*trace.damage, *_odd_facts(trace)],
        "cut": trace.cut,
        "steps": [
            {"number": number, "seconds": took / 1e9, "host_seconds": (end - begin) / 1e9}
            for (number, begin, end), took in zip(steps, step_ns(trace, steps), strict=True)
        ],
        "devices": [_device(trace, each, chosen) for each in devices],
        "why_no_device": None if devices else NO_KERNELS if of_a_gpu_job(trace) else NOTHING_RAN,
        "kernels": _top(trace, kernels, (trace.end - trace.begin)[kernels]),
        "operators": _top(trace, operators, exclusive_ns(trace, operators)),
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


def _device(trace: Trace, of: Breakdown, chosen: np.ndarray) -> dict[str, Any]:
    idle, delays = why_idle(trace, of), launch_delays_ns(trace, of, chosen)
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
            "after_sync_seconds": idle.after_sync / 1e9,
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


def launching_processes(trace: Trace) -> int:
    """How many processes launch work in the trace: what ties a kernel to its launch is known in one process alone."""
    threads = np.unique(trace.thread[trace.of(Kind.RUNTIME)]).tolist()
    return len({trace.threads[thread][0] for thread in threads})


def facts_of(trace: Trace) -> Mapping[str, Any]:
    """What the trace tells of its job: `rank`, `world_size`, `device_name`; None for what it does not."""
    job = trace.metadata.get("distributedInfo")
    devices = trace.metadata.get("deviceProperties")
    job = job if isinstance(job, dict) else {}
    first = devices[0] if isinstance(devices, list) and devices and isinstance(devices[0], dict) else {}
    rank, world = job.get("rank"), job.get("world_size")
    return {
        "rank": rank if _number(rank, 0) else None,
        "world_size": world if _number(world, 1) else None,
        "device_name": shown(first["name"]) if isinstance(first.get("name"), str) else None,
    }


def _odd_facts(trace: Trace) -> list[str]:
    """What the trace tells of its job that cannot be."""
    job = trace.metadata.get("distributedInfo")
    job = job if isinstance(job, dict) else {}
    return [
        f"its distributedInfo.{name} is {shown(str(job[name]))[:40]}, which is no {what}: taken as unknown"
        for name, least, what in (("rank", 0, "rank"), ("world_size", 1, "number of ranks"))
        if job.get(name) is not None and not _number(job[name], least)
    ]


def _number(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < MOST_RANKS
