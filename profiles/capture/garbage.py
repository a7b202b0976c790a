"""Time that Python's garbage collector takes out of steps: every thread stands still meanwhile."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any


class GarbageWatch:
    """Adds up the collector's pauses. `clock` counts nanoseconds."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._since = 0
        self._ns = 0

    def seen(self, phase: str, info: dict[str, Any]) -> None:
        """One of the collector's callbacks."""
        if phase == "start":
            self._since = self._clock()
        else:
            self._ns += self._clock() - self._since

    def take(self) -> int:
        """Nanoseconds of pauses since the last call."""
        taken, self._ns = self._ns, 0
        return taken


@contextlib.contextmanager
def garbage_watch() -> Iterator[GarbageWatch]:
    """A watch of this process's collector."""
    watch = GarbageWatch()
    gc.callbacks.append(watch.seen)
    try:
        yield watch
    finally:
        gc.callbacks.remove(watch.seen)
