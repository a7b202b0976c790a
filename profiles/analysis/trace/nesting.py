"""Which event of a thread lies in which: events of a thread nest, as calls do."""

from __future__ import annotations

import numpy as np

from .events import Trace

NOWHERE = -1


def parents(trace: Trace, chosen: np.ndarray) -> np.ndarray:
    """For each of the events `chosen` (indices, rising), the innermost other one of them on its thread that holds it;
    NOWHERE for the outermost."""
    found = np.full(len(chosen), NOWHERE, dtype=np.int64)
    threads, ends = trace.thread[chosen].tolist(), trace.end[chosen].tolist()
    stacks: dict[int, list[tuple[int, int]]] = {}
    # They come in order of their begin, the longer first.
    for at, (index, thread, end) in enumerate(zip(chosen.tolist(), threads, ends, strict=True)):
        stack = stacks.setdefault(thread, [])
        begin = trace.begin[index]
        while stack and stack[-1][1] <= begin:
            stack.pop()
        # One that ends behind the event that it began in is no part of it: clocks are read apart. It may be of another.
        found[at] = next((each for each, until in reversed(stack) if end <= until), NOWHERE)
        stack.append((index, end))
    return found


def exclusive_ns(trace: Trace, chosen: np.ndarray) -> np.ndarray:
    """How long each of the events `chosen` ran without those of them that lie in it."""
    own = trace.end[chosen] - trace.begin[chosen]
    within = parents(trace, chosen)
    inside = within != NOWHERE
    np.subtract.at(own, np.searchsorted(chosen, within[inside]), (trace.end - trace.begin)[chosen[inside]])
    return np.maximum(own, 0)
