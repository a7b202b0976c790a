"""Where the time of a device went, by interval algebra on its trace: computing, communication that was exposed or
overlapped, copies, idle. Without a device, the same of the host's threads.

A moment belongs to computing if anything computes then, else to communication if any goes on, else to copying, else it
is idle: the four tile the span from the first event to the last, which is asserted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ...records import RECORDED
from .events import ON_DEVICE, Kind, Trace
from .intervals import NONE, common, joined, length, union, without

# Operators of a namespace compute, but those that hand a collective in or wait for one. What has none is a wrapper
# around such, as a Function of autograd in Python, which may as well wait inside.
_COMPUTING = r"(?!c10d::|_c10d_functional::|autograd::|fsdp::|nccl:|gloo:|mpi:).*::"
GLOO = r"gloo:"
_NOT_GLOO = r"(nccl|rccl|xccl|hccl|ucc|mpi):"


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Sets of time (nanoseconds of the trace) of one device, None for the host's threads."""

    device: int | None
    begin: int
    end: int
    compute: np.ndarray
    communication: np.ndarray
    copies: np.ndarray
    idle: np.ndarray

    @property
    def span_ns(self) -> int:
        return self.end - self.begin

    @property
    def exposed_communication(self) -> np.ndarray:
        return without(self.communication, self.compute)

    @property
    def exposed_copies(self) -> np.ndarray:
        return without(self.copies, joined(self.compute, self.communication))

    @property
    def overlapped_communication(self) -> np.ndarray:
        return common(self.communication, self.compute)


def breakdowns(trace: Trace, chosen: np.ndarray | None = None) -> list[Breakdown]:
    """One of each device that ran anything, in order; where none did, that of the host, if its job computes there. Of
    the events where `chosen` (a flag for each) is true; of all without it."""
    if chosen is None:
        chosen = np.ones(len(trace), dtype=bool)
    on_device = trace.of(*ON_DEVICE)
    on_device = on_device[chosen[on_device]]
    if not len(on_device):
        host = None if of_a_gpu_job(trace) else _of_host(trace, chosen)
        return [] if host is None else [host]
    return [
        _of_device(trace, on_device[trace.device[on_device] == device], device)
        for device in np.unique(trace.device[on_device]).tolist()
    ]


def of_a_gpu_job(trace: Trace) -> bool:
    """Whether the job computes on GPUs, by what its trace shows beside kernels: launches, communication that is not
    gloo's, a backend or devices that the file names. Of such a job, the host's operators are only launches."""
    job = trace.metadata.get("distributedInfo")
    # As torch writes it: gloo, nccl, cpu:gloo,cuda:nccl; undefined where the job named none.
    named = str(job.get("backend", "")) if isinstance(job, dict) else ""
    backends = {each.removeprefix(RECORDED) for each in re.split("[:,]", named)} - {"", "cpu", "cuda", "undefined"}
    return bool(
        len(trace.of(Kind.RUNTIME))
        or len(trace.named(Kind.ANNOTATION, _NOT_GLOO))
        or (backends and "gloo" not in backends)
        or (backends != {"gloo"} and trace.metadata.get("deviceProperties"))
    )


def _of_device(trace: Trace, chosen: np.ndarray, device: int) -> Breakdown:
    """The span is that of the `chosen` events; in it, whatever the device did counts, launched in the window or not."""
    mine = trace.of(*ON_DEVICE)
    mine = mine[trace.device[mine] == device]
    begin, end = int(trace.begin[chosen].min()), int(trace.end[chosen].max())

    def time_of(*kinds: Kind) -> np.ndarray:
        of = mine[np.isin(trace.kind[mine], kinds)]
        return union(np.clip(trace.begin[of], begin, end), np.clip(trace.end[of], begin, end))

    copies = time_of(Kind.MEMCPY, Kind.MEMSET)
    return _tiled(device, time_of(Kind.KERNEL), time_of(Kind.COLLECTIVE), copies, trace, chosen)


def _of_host(trace: Trace, chosen: np.ndarray) -> Breakdown | None:
    """That of the host's threads together: None without any operator."""
    computing = trace.named(Kind.OPERATOR, _COMPUTING)
    collectives = np.concatenate((trace.named(Kind.ANNOTATION, GLOO), trace.named(Kind.OPERATOR, GLOO)))
    computing, collectives = computing[chosen[computing]], collectives[chosen[collectives]]
    if not len(computing) + len(collectives):
        return None
    compute = union(trace.begin[computing], trace.end[computing])
    communication = union(trace.begin[collectives], trace.end[collectives])
    return _tiled(None, compute, communication, NONE, trace, np.concatenate((computing, collectives)))


def _tiled(
    device: int | None,
    compute: np.ndarray,
    communication: np.ndarray,
    copies: np.ndarray,
    trace: Trace,
    chosen: np.ndarray,
) -> Breakdown:
    begin, end = int(trace.begin[chosen].min()), int(trace.end[chosen].max())
    span = np.array([[begin, end]], dtype=np.int64)
    idle = without(span, joined(compute, communication, copies))
    found = Breakdown(
        device=device, begin=begin, end=end, compute=compute, communication=communication, copies=copies, idle=idle
    )
    parts = (compute, found.exposed_communication, found.exposed_copies, idle)
    assert sum(map(length, parts)) == found.span_ns
    return found
