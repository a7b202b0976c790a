"""Which events belong to which of the profiler's steps."""

from __future__ import annotations

import re

import numpy as np

from .events import Kind, Trace

_STEP = re.compile(r"ProfilerStep#(\d{1,15})(?!\d)")


def profiler_steps(trace: Trace) -> list[tuple[int, int, int]]:
    """Number, begin and end of each step that the profiler marked on the host, in order. The last mark of a loop that
    ended early holds nothing, and is none."""
    marks = np.concatenate((trace.named(Kind.ANNOTATION, _STEP.pattern), trace.named(Kind.OPERATOR, _STEP.pattern)))
    found: dict[int, tuple[int, int]] = {}
    for index in np.sort(marks).tolist():
        match = _STEP.match(trace.names[trace.name[index]])
        if match is not None:
            found.setdefault(int(match[1]), (int(trace.begin[index]), int(trace.end[index])))
    steps = [(number, *times) for number, times in sorted(found.items(), key=lambda item: item[1])]
    if len(steps) > 1 and not _holds_work(trace, *steps[-1][1:]):
        steps.pop()
    return steps


def _holds_work(trace: Trace, begin: int, end: int) -> bool:
    work = trace.of(Kind.OPERATOR, Kind.RUNTIME)
    work = np.setdiff1d(work, trace.named(Kind.OPERATOR, _STEP.pattern), assume_unique=True)
    return bool(((trace.begin[work] >= begin) & (trace.begin[work] < end)).any())


def step_ns(trace: Trace, steps: list[tuple[int, int, int]]) -> list[int]:
    """How long each step took on the device's timeline: from the first that it launched to the first of the next one,
    the last to its last end. On the host's where a step launched nothing, or there is no device: then of all steps."""
    on_device = trace.kind <= Kind.MEMSET
    begins, last = [], 0
    if not steps:
        return []
    for _, begin, end in steps:
        mine = np.flatnonzero(on_device & within(trace, begin, end))
        if not len(mine):
            return [end - begin for _, begin, end in steps]
        begins.append(int(trace.begin[mine].min()))
        last = int(trace.end[mine].max())
    return [max(0, until - begin) for begin, until in zip(begins, [*begins[1:], last], strict=True)]


def within(trace: Trace, begin: int, end: int) -> np.ndarray:
    """Whether each event belongs to the time from `begin` to `end` of the host: it began then, or, on a device, was
    launched then."""
    launch = launches(trace)
    since = np.where(launch >= 0, trace.begin[launch], trace.begin)
    return (since >= begin) & (since < end)


def launches(trace: Trace) -> np.ndarray:
    """The call that launched each event on a device, by index; -1 where the trace does not have it."""
    calls = trace.of(Kind.RUNTIME)
    calls = calls[trace.correlation[calls] > 0]
    found = np.full(len(trace), -1, dtype=np.int64)
    if not len(calls):
        return found
    order = np.argsort(trace.correlation[calls], kind="stable")
    keys = trace.correlation[calls][order]
    at = np.minimum(np.searchsorted(keys, trace.correlation), len(keys) - 1)
    hit = (keys[at] == trace.correlation) & (trace.kind <= Kind.MEMSET)
    found[hit] = calls[order[at[hit]]]
    return found
