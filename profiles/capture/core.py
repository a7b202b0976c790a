"""The time that a thread was on a core, and the time that it could have run but waited for one: Linux's own count."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

SCHEDSTAT = "/proc/thread-self/schedstat"


class CoreWatch:
    """Reads the count of the thread that made it, in 2 us. `descriptor` is an open schedstat (proc(5): nanoseconds on
    a core, nanoseconds in a run queue, time slices); None where the system has none."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._on, self._waited = 0, 0

    def take(self) -> tuple[int, int] | None:
        """Nanoseconds on a core, and waiting for one, since the last call; None where that is not known."""
        if self._descriptor is None:
            return None
        try:
            on, waited, *_ = map(int, os.pread(self._descriptor, 96, 0).split())
        except (OSError, ValueError):
            self._descriptor = None
            return None
        before = self._on, self._waited
        self._on, self._waited = on, waited
        return on - before[0], waited - before[1]


@contextlib.contextmanager
def core_watch(path: str = SCHEDSTAT) -> Iterator[CoreWatch]:
    """A watch of the calling thread."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield CoreWatch(None)
        return
    try:
        watch = CoreWatch(descriptor)
        watch.take()
        yield watch
    finally:
        os.close(descriptor)
