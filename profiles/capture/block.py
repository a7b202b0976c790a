"""Timing the steps of a block in the tail of a run, with the probe or without."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from .probe import ModelState, Probe
from .steps import ScheduledStep
from .timeline import Timeline


class BlockTimer:
    """A probe for the step loop that marks each step and hands all else to `probe`; None leaves the loop bare.

    What `probe` puts off is written before the last mark, so that its cost falls into the block that caused it. Where
    it is `timed`, the time in the probe's own calls is added up as well. `at` hears of the steps of a bare loop, for
    who watches over it.
    """

    def __init__(
        self,
        probe: Probe | None,
        timeline: Timeline,
        *,
        timed: bool = False,
        at: Callable[[int | None, str | None], None] = lambda step, phase: None,
    ) -> None:
        self._probe = probe
        self._at = at
        self._calls: Probe | TimedCalls | None = TimedCalls(probe) if timed and probe is not None else probe
        self._timeline = timeline
        self._marks: list[Any] = []
        self._null: AbstractContextManager[None] = contextlib.nullcontext()

    @contextlib.contextmanager
    def step(self, step: ScheduledStep) -> Iterator[None]:
        if self._probe is None:
            self._at(step.index, "step")
        if not self._marks:
            self._marks.append(self._timeline.mark())
        with self._null if self._calls is None else self._calls.step(step):
            yield
        self._marks.append(self._timeline.mark())

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self._null if self._calls is None else self._calls.phase(name)

    def drawn(self, batch: Any) -> None:
        if self._calls is not None:
            self._calls.drawn(batch)

    def loss(self, loss: torch.Tensor) -> None:
        if self._calls is not None:
            self._calls.loss(loss)

    def gradients_ready(self, run: ModelState) -> None:
        if self._calls is not None:
            self._calls.gradients_ready(run)

    def updated(self, run: ModelState) -> None:
        if self._calls is not None:
            self._calls.updated(run)

    def event(self, kind: Any, step: int) -> AbstractContextManager[dict[str, Any]]:
        return contextlib.nullcontext({})

    def seconds(self) -> list[float]:
        """Of each step, once the device has passed the last."""
        if self._probe is not None:
            if isinstance(self._calls, TimedCalls):
                self._calls.close()
            self._probe.close()
            self._marks[-1] = self._timeline.mark()
        self._timeline.wait(self._marks[-1])
        return [self._timeline.seconds(a, b) for a, b in itertools.pairwise(self._marks)]

    @property
    def call_seconds(self) -> float | None:
        """In the probe's calls, a step; None where they were not timed."""
        if not isinstance(self._calls, TimedCalls):
            return None
        return self._calls.spent_ns * 1e-9 / (len(self._marks) - 1)


class TimedCalls:
    """A probe whose calls are timed, those that enter and leave its contexts too. `clock` counts nanoseconds."""

    def __init__(self, probe: Probe, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.spent_ns = 0
        self._probe = probe
        self._clock = clock

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        begin = self._clock()
        result = method(*arguments)
        self.spent_ns += self._clock() - begin
        return result

    @contextlib.contextmanager
    def _around(self, method: Callable[..., AbstractContextManager[None]], *arguments: Any) -> Iterator[None]:
        inner = self._call(method, *arguments)
        self._call(inner.__enter__)
        try:
            yield
        except BaseException as error:
            inner.__exit__(type(error), error, error.__traceback__)
            raise
        self._call(inner.__exit__, None, None, None)

    def step(self, step: ScheduledStep) -> AbstractContextManager[None]:
        return self._around(self._probe.step, step)

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self._around(self._probe.phase, name)

    def drawn(self, batch: Any) -> None:
        self._call(self._probe.drawn, batch)

    def loss(self, loss: torch.Tensor) -> None:
        self._call(self._probe.loss, loss)

    def gradients_ready(self, run: ModelState) -> None:
        self._call(self._probe.gradients_ready, run)

    def updated(self, run: ModelState) -> None:
        self._call(self._probe.updated, run)

    def close(self) -> None:
        self._call(self._probe.close)
