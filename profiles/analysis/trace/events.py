"""A trace as columns: what each event is, where it ran, when. Names are kept once.

Categories and names differ by version of torch and by vendor; here they become the few kinds that analysis knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np


class Kind(IntEnum):
    """What an event is. Those up to MEMSET ran on a device."""

    KERNEL = 0
    COLLECTIVE = 1
    MEMCPY = 2
    MEMSET = 3
    OPERATOR = 4
    RUNTIME = 5
    """A call of the device's runtime or driver, by the host."""
    PYTHON = 6
    ANNOTATION = 7
    """A range that was named by a program: `record_function`, the profiler's own steps, gloo's collectives."""


ON_DEVICE = (Kind.KERNEL, Kind.COLLECTIVE, Kind.MEMCPY, Kind.MEMSET)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The complete events of one file in order of their begin. Times are nanoseconds since `base_microseconds` of the
    file. `name`, `thread` and `device` are numbers of `names`, `threads` and a device; -1 where there is none.
    `correlation` ties what a device ran to the call that launched it, `stack` is the number in `names` of a call
    stack that the event carries.

    `dropped` counts events that could not be used, by reason; `damage` says what of the file could not be read,
    `cut` whether any number of events may be missing, of any time: files are not in the order of time.
    """

    path: Path
    metadata: Mapping[str, Any]
    base_microseconds: float
    names: list[str]
    threads: list[tuple[Any, Any]]
    kind: np.ndarray
    name: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    thread: np.ndarray
    device: np.ndarray
    stream: np.ndarray
    correlation: np.ndarray
    stack: np.ndarray
    dropped: Mapping[str, int]
    damage: tuple[str, ...]
    cut: bool = False

    def __len__(self) -> int:
        return len(self.kind)

    def of(self, *kinds: Kind) -> np.ndarray:
        """Indices of the events of `kinds`."""
        return np.flatnonzero(np.isin(self.kind, kinds))

    def named(self, kind: Kind, pattern: str) -> np.ndarray:
        """Indices of the events of `kind` whose name matches `pattern` from its begin."""
        wanted = np.array([re.match(pattern, name) is not None for name in self.names], dtype=bool)
        found = self.of(kind)
        return found[wanted[self.name[found]]]


def shown(name: str) -> str:
    """`name` without characters that a terminal would obey."""
    return name if name.isprintable() else "".join(each if each.isprintable() else " " for each in name)
