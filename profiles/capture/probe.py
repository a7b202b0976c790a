"""The probe: what the step loop calls around its parts, and what turns that into records of every step."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..records import EventKind, EventRecord, Record, Role, StepRecord
from .comm import PATIENCE_STEPS, CommRecorder, StepComm
from .finite import FiniteWatch, first_not_finite
from .memory import model_state
from .timeline import Timeline

# Steps that may be waiting for the device before the probe waits for it: bounds memory, never met in practice.
MAX_PENDING = 64


class ScheduledStep(Protocol):
    """What the probe needs to know of a step."""

    @property
    def index(self) -> int: ...
    @property
    def role(self) -> Role: ...
    @property
    def lr(self) -> float: ...
    @property
    def samples(self) -> int: ...


class Gradients(Protocol):
    """A rank's reduced gradients, `scale` times the true ones, each held alike by `replicas` ranks."""

    @property
    def parts(self) -> list[torch.Tensor]: ...
    @property
    def replicas(self) -> int: ...
    @property
    def scale(self) -> torch.Tensor | float: ...


class ModelState(Protocol):
    """What the probe needs to know of a model under a strategy."""

    @property
    def skipped(self) -> torch.Tensor | bool: ...
    def gradients(self) -> Gradients: ...
    def state(self) -> Mapping[str, list[torch.Tensor]]: ...


@dataclass
class _Pending:
    """A step whose marks the device may not have reached."""

    step: ScheduledStep
    begin: Any
    end: Any = None
    phases: list[tuple[str, Any, Any]] = field(default_factory=list)
    host_data_seconds: float = 0.0
    scalars: list[torch.Tensor] = field(default_factory=list)
    losses: int = 0
    grad_replicas: int | None = None
    skipped: torch.Tensor | bool = False
    noted: list[str] = field(default_factory=list)
    begin_ns: int = 0
    comm: StepComm | None = None


class Probe:
    """Phases, losses and gradient norms of every step, without synchronising the device.

    `write` takes each record when it is complete; `watch` sees each step's record right after and may raise.
    `memory_step` is the step at which model state is counted: one after the first, so that the optimizer has its own.
    `at` hears of every phase and event as it begins; `finite` tells which tensors of a step were not finite; `comm`
    keeps what collectives did.
    """

    def __init__(
        self,
        write: Callable[[Record], None],
        timeline: Timeline,
        watch: Callable[[StepRecord], None] = lambda record: None,
        host_clock: Callable[[], float] = time.perf_counter,
        *,
        record_grad_norm: bool = False,
        memory_step: int | None = None,
        at: Callable[[int | None, str | None], None] = lambda step, phase: None,
        finite: FiniteWatch | None = None,
        comm: CommRecorder | None = None,
    ) -> None:
        self._write = write
        self._at = at
        self._comm = comm
        self._finite = finite
        self._timeline = timeline
        self._watch = watch
        self._host_clock = host_clock
        self._record_grad_norm = record_grad_norm
        self._memory_step = memory_step
        self._pending: deque[_Pending] = deque()
        self._current: _Pending | None = None
        self._boundary: Any = None
        self._elapsed_seconds = 0.0

    @contextlib.contextmanager
    def step(self, step: ScheduledStep) -> Iterator[None]:
        """Around one optimizer step. It begins where the step or event before it ended: nothing falls between."""
        begin = self._timeline.mark() if self._boundary is None else self._boundary
        self._current = pending = _Pending(step, begin, begin_ns=self._timeline.host_ns(begin))
        if self._comm is not None:
            self._comm.open()
        yield
        for what, total in self._finite.take() if self._finite is not None else ():
            pending.noted.append(what)
            pending.scalars.append(total)
        pending.scalars = _to_host(pending)
        pending.end = self._boundary = self._timeline.mark()
        if self._comm is not None:
            pending.comm = self._comm.close()
        self._current = None
        self._pending.append(pending)
        self._drain(keep=MAX_PENDING)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Around one part of a step. Parts do not nest."""
        assert self._current is not None
        self._at(self._current.step.index, name)
        host_begin = self._host_clock()
        begin = self._timeline.mark()
        if self._comm is not None:
            self._comm.enter(name)
        yield
        if self._comm is not None:
            self._comm.enter(None)
        self._current.phases.append((name, begin, self._timeline.mark()))
        if name == "data":
            self._current.host_data_seconds += self._host_clock() - host_begin

    def loss(self, loss: torch.Tensor) -> None:
        """One micro-batch's loss on this rank; read later."""
        assert self._current is not None
        self._current.scalars.append(loss.detach())
        self._current.losses += 1

    def gradients_ready(self, run: ModelState) -> None:
        """Before a step's update: the gradients are reduced and complete. Takes what the run asked to be recorded."""
        assert self._current is not None
        if self._record_grad_norm:
            gradients = run.gradients()
            norms = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32) for part in gradients.parts])
            self._current.scalars.append((norms / gradients.scale).square().sum())
            self._current.grad_replicas = gradients.replicas
        if self._current.step.index == self._memory_step:
            self._write(model_state(self._current.step.index, run.state()))

    def updated(self, run: ModelState) -> None:
        """After a step's update: whether it was left out, a flag on the device, is read later with the losses."""
        assert self._current is not None
        self._current.skipped = run.skipped
        if isinstance(run.skipped, torch.Tensor):
            self._current.scalars.append(run.skipped)

    @contextlib.contextmanager
    def event(self, kind: EventKind, step: int) -> Iterator[dict[str, Any]]:
        """Around something between steps, after `step`. What is put into the yielded dict goes into the record."""
        begin = self._timeline.mark() if self._boundary is None else self._boundary
        self._at(step, kind)
        values: dict[str, Any] = {}
        yield values
        end = self._timeline.mark()
        self._timeline.wait(end)
        self._drain(keep=0)
        start, seconds = self._advance(begin, end)
        self._boundary = end
        self._write(EventRecord(event=kind, step=step, start_seconds=start, seconds=seconds, values=values))

    def close(self) -> None:
        """Write what is still pending."""
        self._drain(keep=0)

    def _drain(self, keep: int) -> None:
        """Write the steps that the device has finished; wait for those beyond the newest `keep`."""
        while self._pending:
            oldest = self._pending[0]
            if not self._timeline.reached(oldest.end):
                if len(self._pending) <= keep:
                    return
                self._timeline.wait(oldest.end)
            elif len(self._pending) <= min(keep, PATIENCE_STEPS) and oldest.comm and not oldest.comm.complete():
                return
            self._pending.popleft()
            self._finish(oldest)

    def _finish(self, pending: _Pending) -> None:
        phases: dict[str, float] = {}
        for name, begin, end in pending.phases:
            phases[name] = phases.get(name, 0.0) + self._timeline.seconds(begin, end)
        start, seconds = self._advance(pending.begin, pending.end)
        # Behind the losses travel the gradients' sum of squares, whether the update was skipped, and what was watched.
        values = [value for tensor in pending.scalars for value in tensor.reshape(-1).tolist()]
        count = len(values) - len(pending.noted)
        scalars = [_finite(value) for value in values[:count]]
        comm = None
        if self._comm is not None and pending.comm is not None:
            plan, comm = self._comm.record(pending.comm, pending.begin, pending.begin_ns)
            if plan is not None:
                self._write(plan)
        has_norm = pending.grad_replicas is not None
        record = StepRecord(
            step=pending.step.index,
            role=pending.step.role,
            start_seconds=start,
            seconds=seconds,
            phases=phases,
            host_data_seconds=pending.host_data_seconds,
            losses=scalars[: pending.losses],
            samples=pending.step.samples,
            lr=pending.step.lr,
            grad_square_sum=scalars[pending.losses] if has_norm else None,
            grad_replicas=pending.grad_replicas,
            skipped=bool(scalars[-1]) if isinstance(pending.skipped, torch.Tensor) else pending.skipped,
            not_finite=first_not_finite(list(zip(pending.noted, values[count:], strict=True))),
            begin_ns=pending.begin_ns,
            comm=comm,
        )
        self._write(record)
        self._watch(record)

    def _advance(self, begin: Any, end: Any) -> tuple[float, float]:
        """Start, counted from the first boundary, and length of [begin, end]. Intervals come in order and touch."""
        start, seconds = self._elapsed_seconds, self._timeline.seconds(begin, end)
        self._elapsed_seconds += seconds
        return start, seconds


def _to_host(pending: _Pending) -> list[torch.Tensor]:
    """The step's scalars as one host tensor, whose values are there once the step's end mark is reached."""
    scalars = pending.scalars
    if not scalars:
        return []
    stacked = torch.stack([s if s.dtype == torch.float32 and s.ndim == 0 else s.float().reshape(()) for s in scalars])
    if stacked.device.type == "cpu":
        return [stacked]
    return [torch.empty_like(stacked, device="cpu", pin_memory=True).copy_(stacked, non_blocking=True)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
