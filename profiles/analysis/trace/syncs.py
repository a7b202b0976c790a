"""Where the host waited for the device, or would have: the call, the operator that it came from, the line of source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .events import Kind, Trace
from .nesting import NOWHERE, parents

_SYNC_CALLS = (
    r"(cuda|hip)(Device|Stream|Event)Synchronize|cu(Ctx|Stream|Event)Synchronize|"
    r"(cuda|hip)Memcpy(WithStream|2D|ToSymbol|FromSymbol)?$|cuMemcpy(DtoH|HtoD)_v2$|(cuda|hip)(Free|HostAlloc|FreeHost)$"
)
# What makes the host wait where there is a device; on CPU they cost nothing, and are named for when there is one.
SYNC_OPERATORS = r"aten::(item|_local_scalar_dense|nonzero|is_nonzero|masked_select|unique\w*|equal|bincount)$"
_PAGEABLE = re.compile(r"Pageable")
_MEASURING = "scalelab/profiles/capture/"
_PACKAGE = re.compile(r"^/.*/scalelab/(?=(launch|profiles|models|data|reports)/)")
_LINE = re.compile(r"(?P<file>[^;]*\.pyx?)\((?P<line>\d+)\): (?P<function>[^;]*)")
# Frames that are no one's own code: torch and what stands with it, the interpreter's library.
_LIBRARY = re.compile(
    r"(^|/)(torch|accelerate|deepspeed|lightning|numpy|site-packages|dist-packages|lib/python3[\d.]*)/"
)


@dataclass(frozen=True, kw_only=True)
class Sync:
    """A kind of wait: `call` in `operator` (the outermost one of it; None outside of any) from `source`, a line of the
    user's code (None where the trace has no stacks), so often and for so long. `blocked_ns` is None for operators that
    would wait on a device and ran on none."""

    call: str
    operator: str | None
    source: str | None
    count: int
    blocked_ns: int | None


def host_syncs(trace: Trace, chosen: np.ndarray) -> list[Sync]:
    """Every kind of wait among the events where `chosen` is true, that which took longest first."""
    pageable = _pageable_calls(trace)
    on_device = bool(len(trace.of(Kind.KERNEL, Kind.MEMCPY)))
    waits = blocking_calls(trace)
    if not on_device:
        waits = trace.named(Kind.OPERATOR, SYNC_OPERATORS)
    waits = waits[chosen[waits]]
    frames = _around(trace, trace.of(Kind.OPERATOR, Kind.PYTHON, Kind.RUNTIME), waits)
    within = dict(zip(frames.tolist(), parents(trace, frames).tolist(), strict=True))
    found: dict[tuple[str, str | None, str | None], list[int]] = {}
    all_waits, of_pageable = set(waits.tolist()), set(pageable.tolist())
    for index in waits.tolist():
        chain = list(_chain(within, index))
        if not on_device and any(each in all_waits for each in chain):
            continue  # aten::item calls aten::_local_scalar_dense: one wait
        operators = [each for each in chain if trace.kind[each] == Kind.OPERATOR and not _is_step(trace, each)]
        if not on_device and operators:
            continue  # an operator's own way of doing it, which another device does not share
        name = trace.names[trace.name[index]]
        if index in of_pageable:
            name += " of pageable memory"
        operator = trace.names[trace.name[operators[-1]]] if operators else None
        source = _source(trace, [index, *chain])
        if not on_device and source is not None and _MEASURING in source:
            continue  # on a device the probe leaves its numbers there
        key = (name, operator, source)
        found.setdefault(key, []).append(int(trace.end[index] - trace.begin[index]))
    syncs = [
        Sync(call=call, operator=operator, source=source, count=len(each), blocked_ns=sum(each) if on_device else None)
        for (call, operator, source), each in found.items()
    ]
    return sorted(syncs, key=lambda sync: (-(sync.blocked_ns or 0), -sync.count))


def blocking_calls(trace: Trace) -> np.ndarray:
    """Indices of the calls in which the host waits for the device."""
    return np.union1d(trace.named(Kind.RUNTIME, _SYNC_CALLS), _pageable_calls(trace))


def _around(trace: Trace, frames: np.ndarray, waits: np.ndarray) -> np.ndarray:
    """Those of `frames` in which one of `waits` begins: of a million frames, a few hundred."""
    kept = np.zeros(len(frames), dtype=bool)
    for thread in np.unique(trace.thread[waits]).tolist():
        begins = trace.begin[waits[trace.thread[waits] == thread]]
        mine = np.flatnonzero(trace.thread[frames] == thread)
        first = np.searchsorted(begins, trace.begin[frames[mine]], side="left")
        kept[mine] = first < np.searchsorted(begins, trace.end[frames[mine]], side="left")
    return frames[kept]


def _is_step(trace: Trace, index: int) -> bool:
    """Whether it is one of the profiler's steps, which its first versions wrote as operators."""
    return trace.names[trace.name[index]].startswith("ProfilerStep#")


def _pageable_calls(trace: Trace) -> np.ndarray:
    """Calls that copied from or to pageable memory, for which the host waits."""
    copies = trace.of(Kind.MEMCPY)
    copies = copies[[bool(_PAGEABLE.search(trace.names[name])) for name in trace.name[copies].tolist()]]
    calls = trace.of(Kind.RUNTIME)
    wanted = trace.correlation[copies]
    return calls[np.isin(trace.correlation[calls], wanted[wanted > 0])]


def _chain(within: dict[int, int], index: int) -> Iterator[int]:
    """What holds the event, from the inside out."""
    at = within.get(index, NOWHERE)
    while at != NOWHERE:
        yield at
        at = within[at]


def _source(trace: Trace, chain: list[int]) -> str | None:
    """The innermost line of the user's own code around an event."""
    for each in chain:
        if trace.kind[each] == Kind.PYTHON and (line := _own_line(trace.names[trace.name[each]])):
            return line
    for each in chain:
        if trace.stack[each] >= 0:
            for frame in _LINE.finditer(trace.names[trace.stack[each]]):
                if line := _own_line(frame[0]):
                    return line
    return None


def _own_line(frame: str) -> str | None:
    match = _LINE.search(frame)
    if match is None or _LIBRARY.search(match["file"]):
        return None
    return within_package(f"{match['file'].strip()}:{match['line']} ({match['function'].strip()})")


def within_package(source: str) -> str:
    """A line of source, its path from our package on where it is in it, wherever that is installed."""
    return _PACKAGE.sub("scalelab/", source)
