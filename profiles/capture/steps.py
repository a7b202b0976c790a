"""Steps and events that were noted, on their way to the run folder.

Their marks are read when the device has reached them. Records are made and written in batches, between steps (one by
one they would cost each 150 us of cold code), as events of their own (`flush`); long steps are written as they come.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..records import CommRecord, EventKind, EventRecord, Record, Role, StepRecord
from .comm import PATIENCE_STEPS, CommRecorder, StepComm
from .finite import Noted, first_not_finite
from .pauses import Paused
from .timeline import Timeline

# Steps that may be waiting for the device before the probe waits for it, or to be written: bounds memory.
MAX_PENDING = 64
# How long a finished step may stay unwritten; one that took longer than LONG_NS is written at once.
FLUSH_NS = 500_000_000
LONG_NS = 50_000_000


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


class NotedStep:
    """A step whose marks the device may not have reached. `losses` of micro-batches, the gradients' sum of squares and
    whether the update was skipped are on the device until then; `outputs` and `gradients` must be finite as well."""

    # On the class, as most steps leave most of it so: a line costs 1 us on the way of what is measured.
    end: Any = None
    host_data_ns = 0
    recomputed: list[tuple[Any, Any]] | None = None
    paused: Paused | None = None
    grad_square_sum: Any = None
    grad_replicas: int | None = None
    skipped: torch.Tensor | bool = False
    outputs: Sequence[Noted] = ()
    gradients: Sequence[Noted] = ()
    on_host: torch.Tensor | None = None
    comm: StepComm | None = None

    def __init__(self, step: ScheduledStep, begin: Any, begin_ns: int) -> None:
        self.step = step
        self.begin = begin
        self.begin_ns = begin_ns
        self.phases: list[tuple[str, Any, Any]] = []
        self.losses: list[Any] = []


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
        watch: Callable[[Sequence[StepRecord]], None],
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
        self._due_ns: int | None = None
        self._go_on: list[StepComm] = []

    def begin(self, step: ScheduledStep) -> NotedStep:
        begin = self._timeline.mark() if self._boundary is None else self._boundary
        noted = NotedStep(step, begin, self._timeline.host_ns(begin))
        if self._due_ns is None:
            self._due_ns = noted.begin_ns + FLUSH_NS
        return noted

    def end(self, noted: NotedStep) -> None:
        """The step is over. What the device has finished is read, and written when it is time."""
        if self._timeline.synchronous:
            noted.end = self._boundary = now = self._timeline.mark()
            self._pending.append(noted)
            if self._go_on or (noted.comm is not None and noted.comm.going_on):
                self._see_ends(noted, now)
            urgent = bool(noted.gradients) or not all(map(math.isfinite, noted.losses))
        else:
            _to_host(noted)
            noted.end = self._boundary = self._timeline.mark()
            now = self._timeline.host_ns(noted.end)
            self._pending.append(noted)
            urgent = self._read_finished(keep=MAX_PENDING)
        assert self._due_ns is not None
        if not urgent and now < self._due_ns and now - noted.begin_ns < LONG_NS and len(self._pending) < MAX_PENDING:
            return
        self._due_ns = now + FLUSH_NS
        self._read_finished(keep=MAX_PENDING)
        several = len(self._read) > 1
        self._flush()
        if several:
            self._boundary = self._timeline.mark()
            self._pending.append(_NotedFlush(noted.step.index, noted.end, self._boundary))

    def _see_ends(self, noted: NotedStep, now: int) -> None:
        """Collectives that went on when their step was over are looked after from step to step."""
        if noted.comm is not None:
            self._go_on.append(noted.comm)
        self._go_on = [comm for comm in self._go_on[-PATIENCE_STEPS:] if not comm.complete(now)]

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
        looked at now: a number in it is not finite. (On CPU that is seen at its end.)"""
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
            if isinstance(oldest, NotedStep) and oldest.on_host is not None:
                urgent |= not bool(oldest.on_host.isfinite().all())
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
        if steps := [record for record in records if isinstance(record, StepRecord)]:
            self._watch(steps)

    def _event(self, kind: EventKind, step: int, begin: Any, end: Any, values: dict[str, Any]) -> EventRecord:
        start, seconds = self._advance(begin, end)
        return EventRecord(event=kind, step=step, start_seconds=start, seconds=seconds, values=values)

    def _records(self, noted: NotedStep) -> list[Record]:
        """The step's record, behind the list of its collectives where that is new."""
        timeline = self._timeline
        phases: dict[str, float] = {}
        for name, begin, end in noted.phases:
            phases[name] = phases.get(name, 0.0) + timeline.seconds(begin, end)
        start, seconds = self._advance(noted.begin, noted.end)
        _from_host(noted)
        records, comm = self._comm_records(noted)
        record = StepRecord(
            step=noted.step.index,
            role=noted.step.role,
            start_seconds=start,
            seconds=seconds,
            phases=phases,
            host_data_seconds=noted.host_data_ns * 1e-9,
            losses=[_finite(loss) for loss in noted.losses],
            samples=noted.step.samples,
            lr=noted.step.lr,
            grad_square_sum=None if noted.grad_square_sum is None else _finite(noted.grad_square_sum),
            grad_replicas=noted.grad_replicas,
            skipped=bool(noted.skipped),
            not_finite=first_not_finite([*noted.outputs, *noted.gradients]),
            recompute_seconds=None
            if noted.recomputed is None
            else sum(timeline.seconds(begin, end) for begin, end in noted.recomputed),
            **({} if noted.paused is None else noted.paused.seconds()),
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


def _numbers(noted: NotedStep) -> list[torch.Tensor]:
    """The step's numbers that are on the device."""
    alone = [each for each in (noted.grad_square_sum, noted.skipped) if isinstance(each, torch.Tensor)]
    return [*noted.losses, *alone, *(total for _, total in noted.outputs), *(total for _, total in noted.gradients)]


def _to_host(noted: NotedStep) -> None:
    """Send the step's numbers to the host, where they are once its end mark is reached."""
    tensors = _numbers(noted)
    if tensors and tensors[0].device.type != "cpu":
        stacked = torch.stack([tensor.float().reshape(()) for tensor in tensors])
        noted.on_host = torch.empty_like(stacked, device="cpu", pin_memory=True).copy_(stacked, non_blocking=True)


def _from_host(noted: NotedStep) -> None:
    """Put the numbers that were sent to the host in their places."""
    if noted.on_host is None:
        return
    values = iter(noted.on_host.tolist())
    noted.losses = [next(values) for _ in noted.losses]
    if isinstance(noted.grad_square_sum, torch.Tensor):
        noted.grad_square_sum = next(values)
    if isinstance(noted.skipped, torch.Tensor):
        noted.skipped = bool(next(values))
    noted.outputs = [(what, torch.tensor(next(values))) for what, _ in noted.outputs]
    noted.gradients = [(what, torch.tensor(next(values))) for what, _ in noted.gradients]


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
