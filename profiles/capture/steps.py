"""Steps and events that were noted, on their way to the run folder.

Their marks are read when the device has reached them. Records are made and written in batches, between steps: one by
one they would cost each step some 150 us of cold code, and a batch is an event of its own (`flush`) on the timeline.
Long steps, to which that is nothing, are written as they come.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..records import CommRecord, EventKind, EventRecord, Record, Role, StepRecord
from .comm import PATIENCE_STEPS, CommRecorder, StepComm
from .finite import Noted, all_finite, first_not_finite
from .timeline import Timeline

# Steps that may be waiting for the device before the probe waits for it: bounds memory, never met in practice.
MAX_PENDING = 64
# How long a finished step may stay unwritten; one that took longer than LONG_SECONDS is written at once.
FLUSH_SECONDS = 0.5
LONG_SECONDS = 0.05


class Write(Protocol):
    """Takes records in their order."""

    def __call__(self, *records: Record) -> None: ...


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


@dataclass(slots=True)
class NotedStep:
    """A step whose marks the device may not have reached. Behind the losses in `scalars` come the gradients' sum of
    squares, and whether the update was skipped; `watched` has what else must be finite, by name."""

    step: ScheduledStep
    begin: Any
    begin_ns: int
    end: Any = None
    phases: list[tuple[str, Any, Any]] = field(default_factory=list)
    host_data_ns: int = 0
    recomputed: list[tuple[Any, Any]] | None = None
    scalars: list[torch.Tensor] = field(default_factory=list)
    losses: int = 0
    grad_replicas: int | None = None
    skipped: torch.Tensor | bool = False
    watched: list[Noted] = field(default_factory=list)
    on_host: torch.Tensor | None = None
    comm: StepComm | None = None


@dataclass(frozen=True, slots=True)
class _NotedFlush:
    step: int
    begin: Any
    end: Any


class StepWriter:
    """Keeps noted steps until they can be read, and writes them in the order of the timeline, which they tile."""

    def __init__(
        self,
        write: Write,
        timeline: Timeline,
        watch: Callable[[StepRecord], None],
        comm: CommRecorder | None,
    ) -> None:
        self._write = write
        self._timeline = timeline
        self._watch = watch
        self._comm = comm
        self._pending: deque[NotedStep | _NotedFlush] = deque()
        self._read: list[NotedStep | _NotedFlush] = []
        self._boundary: Any = None
        self._elapsed_seconds = 0.0
        self._flushed_ns: int | None = None

    def begin(self, step: ScheduledStep) -> NotedStep:
        begin = self._timeline.mark() if self._boundary is None else self._boundary
        noted = NotedStep(step, begin, self._timeline.host_ns(begin))
        if self._flushed_ns is None:
            self._flushed_ns = noted.begin_ns
        return noted

    def end(self, noted: NotedStep) -> None:
        """The step is over. What the device has finished is read, and written when it is time."""
        _to_host(noted)
        noted.end = self._boundary = self._timeline.mark()
        self._pending.append(noted)
        urgent = self._read_finished(keep=MAX_PENDING)
        now = self._timeline.host_ns(noted.end)
        waited, took = now - (self._flushed_ns or 0), now - noted.begin_ns
        if not urgent and waited < FLUSH_SECONDS * 1e9 and took < LONG_SECONDS * 1e9:
            return
        self._flushed_ns = now
        several = len(self._read) > 1
        self._flush()
        if several:
            self._boundary = self._timeline.mark()
            self._pending.append(_NotedFlush(noted.step.index, noted.end, self._boundary))

    @contextlib.contextmanager
    def event(self, kind: EventKind, step: int) -> Iterator[dict[str, Any]]:
        begin = self._timeline.mark() if self._boundary is None else self._boundary
        values: dict[str, Any] = {}
        try:
            yield values
        except BaseException:
            self.keep()
            raise
        end = self._timeline.mark()
        self._timeline.wait(end)
        self.close()
        self._boundary = end
        self._write(self._event(kind, step, begin, end, values))

    def keep(self) -> None:
        """Something failed: leave the steps before it on disk, as far as it can be done."""
        with contextlib.suppress(Exception):
            self._read_finished(keep=MAX_PENDING)
            self._flush()

    def close(self) -> None:
        """Read and write all."""
        self._read_finished(keep=0)
        self._flush()

    def _read_finished(self, keep: int) -> bool:
        """Take the steps that the device has finished, waiting for those beyond the newest `keep`. Whether one must be
        looked at now: a number in it is not finite."""
        urgent = False
        while self._pending:
            oldest = self._pending[0]
            if not self._timeline.reached(oldest.end):
                if len(self._pending) <= keep:
                    break
                self._timeline.wait(oldest.end)
            elif len(self._pending) <= min(keep, PATIENCE_STEPS) and self._goes_on(oldest):
                break
            self._pending.popleft()
            self._read.append(oldest)
            if isinstance(oldest, NotedStep):
                urgent |= not _is_finite(oldest)
        return urgent

    def _goes_on(self, noted: NotedStep | _NotedFlush) -> bool:
        """Whether a collective of that step has not ended, which nobody waited for."""
        if self._comm is None or not isinstance(noted, NotedStep) or noted.comm is None:
            return False
        return not noted.comm.complete(self._comm.clock())

    def _flush(self) -> None:
        read, self._read = self._read, []
        records: list[Record] = []
        for noted in read:
            if isinstance(noted, _NotedFlush):
                records.append(self._event("flush", noted.step, noted.begin, noted.end, {}))
            else:
                records += self._records(noted)
        if records:
            self._write(*records)
        for record in records:
            if isinstance(record, StepRecord):
                self._watch(record)

    def _event(self, kind: EventKind, step: int, begin: Any, end: Any, values: dict[str, Any]) -> EventRecord:
        start, seconds = self._advance(begin, end)
        return EventRecord(event=kind, step=step, start_seconds=start, seconds=seconds, values=values)

    def _records(self, noted: NotedStep) -> list[Record]:
        """The step's record, behind the list of its collectives where that is new."""
        phases: dict[str, float] = {}
        for name, begin, end in noted.phases:
            phases[name] = phases.get(name, 0.0) + self._timeline.seconds(begin, end)
        start, seconds = self._advance(noted.begin, noted.end)
        scalars = [value if math.isfinite(value) else None for value in _values(noted)]
        records, comm = self._comm_records(noted)
        record = StepRecord(
            step=noted.step.index,
            role=noted.step.role,
            start_seconds=start,
            seconds=seconds,
            phases=phases,
            host_data_seconds=noted.host_data_ns * 1e-9,
            losses=scalars[: noted.losses],
            samples=noted.step.samples,
            lr=noted.step.lr,
            grad_square_sum=scalars[noted.losses] if noted.grad_replicas is not None else None,
            grad_replicas=noted.grad_replicas,
            skipped=bool(scalars[-1]) if isinstance(noted.skipped, torch.Tensor) else noted.skipped,
            not_finite=first_not_finite(noted.watched),
            recompute_seconds=None
            if noted.recomputed is None
            else sum(self._timeline.seconds(begin, end) for begin, end in noted.recomputed),
            begin_ns=noted.begin_ns,
            comm=comm,
        )
        return [*records, record]

    def _comm_records(self, noted: NotedStep) -> tuple[list[Record], CommRecord | None]:
        if self._comm is None or noted.comm is None:
            return [], None
        plan, comm = self._comm.record(noted.comm, noted.begin, noted.begin_ns)
        return [] if plan is None else [plan], comm

    def _advance(self, begin: Any, end: Any) -> tuple[float, float]:
        """Start, counted from the first boundary, and length of [begin, end]. Intervals come in order and touch."""
        start, seconds = self._elapsed_seconds, self._timeline.seconds(begin, end)
        self._elapsed_seconds += seconds
        return start, seconds


def _to_host(noted: NotedStep) -> None:
    """Send the step's numbers to the host, where they are once its end mark is reached. On CPU they are there."""
    tensors = [*noted.scalars, *(each.tensor for each in noted.watched)]
    if tensors and tensors[0].device.type != "cpu":
        stacked = torch.stack([tensor.float().reshape(()) for tensor in tensors])
        noted.on_host = torch.empty_like(stacked, device="cpu", pin_memory=True).copy_(stacked, non_blocking=True)


def _is_finite(noted: NotedStep) -> bool:
    """Whether the step's losses, and what was watched of it, are finite. What was watched is let go if so."""
    if noted.on_host is not None:
        return bool(noted.on_host.isfinite().all())
    if all(math.isfinite(loss.item()) for loss in noted.scalars[: noted.losses]):
        noted.watched = [each for each in noted.watched if each.is_gradient]
        if all_finite(noted.watched):
            noted.watched = []
            return True
    return False


def _values(noted: NotedStep) -> list[float]:
    if noted.on_host is None:
        return [float(tensor) for tensor in noted.scalars]
    values = noted.on_host.tolist()
    sums = values[len(noted.scalars) :]
    noted.watched = [each._replace(tensor=torch.tensor(total)) for each, total in zip(noted.watched, sums, strict=True)]
    return values[: len(noted.scalars)]
