"""A probe whose phases are named ranges as well, for tools that draw a timeline: torch's profiler, Nsight Systems."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..records import EventKind
from .probe import ModelState, Probe
from .steps import ScheduledStep

Range = Callable[[str], AbstractContextManager[Any]]
PREFIX = "phase:"
"""What the name of a phase's range begins with."""


def step_range(index: int) -> str:
    """The name that viewers of the profiler's traces know a step by."""
    return f"ProfilerStep#{index}"


class RangedProbe:
    """Hands all on to `probe`, with `around(name)` around each step and each phase."""

    def __init__(self, probe: Probe, around: Range) -> None:
        self._probe = probe
        self._around = around

    @contextlib.contextmanager
    def step(self, step: ScheduledStep) -> Iterator[None]:
        with self._around(step_range(step.index)), self._probe.step(step):
            yield

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with self._probe.phase(name), self._around(PREFIX + name):
            yield

    @contextlib.contextmanager
    def event(self, kind: EventKind, step: int) -> Iterator[dict[str, Any]]:
        with self._probe.event(kind, step) as values, self._around(f"event:{kind}"):
            yield values

    def drawn(self, batch: Any) -> None:
        self._probe.drawn(batch)

    def loss(self, loss: torch.Tensor) -> None:
        self._probe.loss(loss)

    def gradients_ready(self, run: ModelState) -> None:
        self._probe.gradients_ready(run)

    def updated(self, run: ModelState) -> None:
        self._probe.updated(run)


def under_nsight(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Nsight Systems watches this process: it tells NVTX so by this variable (nsys 2020 and later)."""
    return bool(environment.get("NVTX_INJECTION64_PATH"))


@contextlib.contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    """A range of NVTX on the calling thread."""
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()
