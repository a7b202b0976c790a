"""The probe when it is off: it times the measured window as a whole, and the loop around it is bare.

The cost of `Probe` is measured against it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..records import EventKind, Record, WindowRecord
from .probe import ModelState
from .steps import ScheduledStep
from .timeline import Timeline


class WindowProbe:
    """The probe when it is off: two marks in a whole run."""

    def __init__(
        self,
        write: Callable[[Record], None],
        timeline: Timeline,
        at: Callable[[int | None, str | None], None] = lambda step, phase: None,
    ) -> None:
        self._write = write
        self._at = at
        self._timeline = timeline
        self._begin: Any = None
        self._end: Any = None
        self._steps = 0
        self._samples = 0
        self._null: AbstractContextManager[None] = contextlib.nullcontext()

    @contextlib.contextmanager
    def step(self, step: ScheduledStep) -> Iterator[None]:
        self._at(step.index, "step")
        if step.role == "measured" and self._begin is None:
            self._begin = self._timeline.mark()
        yield
        if step.role == "measured":
            self._steps += 1
            self._samples += step.samples
            self._end = self._timeline.mark()

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self._null

    def drawn(self, batch: Any) -> None:
        return

    def loss(self, loss: torch.Tensor) -> None:
        return

    def gradients_ready(self, run: ModelState) -> None:
        return

    def updated(self, run: ModelState) -> None:
        return

    def event(self, kind: EventKind, step: int) -> AbstractContextManager[dict[str, Any]]:
        self._at(step, kind)
        return contextlib.nullcontext({})

    def keep(self) -> None:
        return

    def close(self) -> None:
        if self._end is not None:
            self._timeline.wait(self._end)
            seconds = self._timeline.seconds(self._begin, self._end)
            self._write(WindowRecord(steps=self._steps, samples=self._samples, seconds=seconds))
