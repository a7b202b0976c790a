"""One timeline per rank: marks are set on it while training runs and read when they have completed.

On CPU the timeline is the calling thread and a mark is a monotonic time stamp. On CUDA it is the compute stream
and a mark is an event on it: setting one neither waits nor synchronises.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch


class Timeline(Protocol):
    """Marks in the order in which the device reaches them. A `synchronous` one is the host's own thread: its marks are
    nanoseconds of the host's clock, and numbers can be read at once."""

    synchronous: bool

    def mark(self) -> Any:
        """Set a mark here."""
        ...

    def host_ns(self, mark: Any) -> int:
        """The host's monotonic clock at `mark`, which was set just now."""
        ...

    def reached(self, mark: Any) -> bool:
        """Whether the device has passed `mark`, so that it can be read without waiting."""
        ...

    def wait(self, mark: Any) -> None:
        """Wait until the device has passed `mark`."""
        ...

    def nanoseconds(self, begin: Any, end: Any) -> int:
        """From one passed mark to a later one."""
        ...

    def seconds(self, begin: Any, end: Any) -> float:
        """The same in seconds."""
        ...


class HostTimeline:
    """The calling thread. `clock` counts nanoseconds, monotonically."""

    synchronous = True

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.mark = clock

    def host_ns(self, mark: int) -> int:
        return mark

    def reached(self, mark: int) -> bool:
        return True

    def wait(self, mark: int) -> None:
        return

    def nanoseconds(self, begin: int, end: int) -> int:
        return end - begin

    def seconds(self, begin: int, end: int) -> float:
        return (end - begin) * 1e-9


class CudaTimeline:
    """The current CUDA stream. `elapsed_time` is in float32 milliseconds, so only near marks are subtracted."""

    synchronous = False

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def host_ns(self, mark: torch.cuda.Event) -> int:
        return time.perf_counter_ns()

    def reached(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()

    def nanoseconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> int:
        return round(begin.elapsed_time(end) * 1e6)

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) * 1e-3


def timeline_for(device: torch.device) -> Timeline:
    """The timeline of `device`."""
    return CudaTimeline() if device.type == "cuda" else HostTimeline()
