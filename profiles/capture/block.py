"""Timing the steps of a block in the tail of a run, with the probe or without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from .probe import ModelState, Probe
from .steps import ScheduledStep
from .timeline import Timeline


class BlockTimer:
    """A probe for the step loop that marks each step and hands all else to `probe`; None leaves the loop bare.

    What `probe` puts off is written before the last mark, so that its cost falls into the block that caused it.
    """

    def __init__(self, probe: Probe | None, timeline: Timeline) -> None:
        self._probe = probe
        self._timeline = timeline
        self._marks: list[Any] = []
        self._null: AbstractContextManager[None] = contextlib.nullcontext()

    @contextlib.contextmanager
    def step(self, step: ScheduledStep) -> Iterator[None]:
        if not self._marks:
            self._marks.append(self._timeline.mark())
        with self._null if self._probe is None else self._probe.step(step):
            yield
        self._marks.append(self._timeline.mark())

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self._null if self._probe is None else self._probe.phase(name)

    def loss(self, loss: torch.Tensor) -> None:
        if self._probe is not None:
            self._probe.loss(loss)

    def gradients_ready(self, run: ModelState) -> None:
        if self._probe is not None:
            self._probe.gradients_ready(run)

    def updated(self, run: ModelState) -> None:
        if self._probe is not None:
            self._probe.updated(run)

    def event(self, kind: Any, step: int) -> AbstractContextManager[dict[str, Any]]:
        return contextlib.nullcontext({})

    def seconds(self) -> list[float]:
        """Of each step, once the device has passed the last."""
        if self._probe is not None:
            self._probe.close()
            self._marks[-1] = self._timeline.mark()
        self._timeline.wait(self._marks[-1])
        return [self._timeline.seconds(a, b) for a, b in zip(self._marks, self._marks[1:], strict=False)]
