"""Why a device was idle: work that the host had not launched yet, launches under way, or work that was there and waited
for other work on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .breakdown import Breakdown
from .events import ON_DEVICE, Kind, Trace
from .intervals import common, length, union, without
from .syncs import blocking_calls
from .window import launches

LOADER = r"enumerate\(DataLoader\)"


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Parts of a device's idle time in nanoseconds, which sum to it.

    `not_launched`: what came next had not been launched, nor its launch begun; of that `loading` while the host was in
    a DataLoader (None where the trace shows none), and `after_sync`, none of it loading, where the device ran empty
    while the host waited for it: without that wait the host would have been ahead. `launching`: from the begin of the
    launch to that of the work, which is a few microseconds at least. `on_device`: what came next had been launched
    before. `unknown`: its launch is not in the trace. `gaps` counts the idle intervals.
    """

    not_launched: int
    loading: int | None
    after_sync: int
    launching: int
    on_device: int
    unknown: int
    gaps: int


def why_idle(trace: Trace, of: Breakdown) -> Idle | None:
    """Of one device; None for the host's threads."""
    if of.device is None:
        return None
    gaps = of.idle
    mine = trace.of(*ON_DEVICE)
    mine = mine[trace.device[mine] == of.device]
    # Each gap ends where something begins; of several that do, any tells.
    following = mine[np.searchsorted(trace.begin[mine], gaps[:, 1], side="left")]
    launch = launches(trace)[following]
    known = launch >= 0
    begin, end = gaps[:, 0], gaps[:, 1]
    launch_begin = np.where(known, trace.begin[launch], begin)
    launch_end = np.where(known, trace.end[launch], begin)
    before = known & (launch_end <= begin)
    late = np.where(known & ~before, np.clip(launch_begin, begin, end), begin)
    waiting = union(begin[known & ~before], late[known & ~before])
    loaders = np.concatenate((trace.named(Kind.ANNOTATION, LOADER), trace.named(Kind.OPERATOR, LOADER)))
    in_loaders = union(trace.begin[loaders], trace.end[loaders])
    waited = known & ~before & _within(begin, blocking_calls(trace), trace)
    found = Idle(
        not_launched=length(waiting),
        loading=length(common(waiting, in_loaders)) if len(loaders) else None,
        after_sync=length(without(union(begin[waited], late[waited]), in_loaders)),
        launching=int((end - late)[known & ~before].sum()),
        on_device=int((end - begin)[before].sum()),
        unknown=int((end - begin)[~known].sum()),
        gaps=len(gaps),
    )
    assert found.not_launched + found.launching + found.on_device + found.unknown == length(gaps)
    return found


def _within(times: np.ndarray, events: np.ndarray, trace: Trace) -> np.ndarray:
    """Which of `times` lie in one of `events`, their ends included."""
    spans = union(trace.begin[events], trace.end[events] + 1)
    if not len(spans):
        return np.zeros(len(times), dtype=bool)
    last = np.searchsorted(spans[:, 0], times, side="right") - 1
    return (last >= 0) & (times < spans[last, 1])


def launch_delays_ns(trace: Trace, of: Breakdown, chosen: np.ndarray) -> np.ndarray:
    """From the begin of each kernel's launch by the host to the begin of the kernel, of the kernels where `chosen` is
    true. Short ones mean that the device had nothing else to do, long ones that it had a queue.

    Left out are launches of several kernels, as of a graph, and what began before its launch: on some devices the two
    clocks differ.
    """
    kernels = trace.of(Kind.KERNEL, Kind.COLLECTIVE)
    kernels = kernels[(trace.device[kernels] == of.device) & chosen[kernels]]
    launch = launches(trace)[kernels]
    calls, count = np.unique(launch, return_counts=True)
    single = (launch >= 0) & np.isin(launch, calls[count == 1])
    delays = trace.begin[kernels[single]] - trace.begin[launch[single]]
    return delays[delays >= 0]
