"""What keeps a rank's thread from its work within steps: the garbage collector, and other threads on its core."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from .core import CoreWatch, core_watch
from .garbage import GarbageWatch, garbage_watch


class Paused(NamedTuple):
    """Of one step, in nanoseconds: the collector's pauses, and the time on a core and waiting for one; null where that
    is not known."""

    gc_ns: int
    core_ns: tuple[int, int] | None

    def seconds(self) -> dict[str, Any]:
        """As fields of a step's record."""
        on, waited = self.core_ns or (None, None)
        return {
            "gc_seconds": self.gc_ns * 1e-9,
            "on_core_seconds": None if on is None else on * 1e-9,
            "run_delay_seconds": None if waited is None else waited * 1e-9,
        }


class Pauses:
    """Both watches, read together."""

    def __init__(self, garbage: GarbageWatch, core: CoreWatch | None = None) -> None:
        self._garbage = garbage
        self._core = core

    def take(self) -> Paused:
        """What there was since the last call."""
        return Paused(self._garbage.take(), None if self._core is None else self._core.take())


@contextlib.contextmanager
def watched_pauses() -> Iterator[Pauses]:
    """The watches of this process's collector and of the calling thread."""
    with garbage_watch() as garbage, core_watch() as core:
        yield Pauses(garbage, core)
