"""The probe: what the step loop calls around its parts. `steps.py` turns what it notes into records."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from ..records import EventKind, StepRecord
from .batches import BatchTally
from .comm import CommRecorder
from .finite import FiniteWatch
from .memory import model_state
from .pauses import Pauses
from .steps import NotedStep, ScheduledStep, StepWriter, Write
from .timeline import Timeline

# Of the measured steps, those whose collectives' ends are stamped when they occur, at a cost: the second and every
# hundredth after it, and two more of the first, so that a short run has more than one.
EXACT_EVERY, EXACT_FIRST = 100, 1
EXACT_EARLY = (11, 21)


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


class Probe:
    """Phases, losses, gradient norms and collectives of every step, without synchronising the device.

    `write` takes records some time after they are complete; `watch` sees those of steps right after and may raise, at
    once where a number is not finite. `memory_step` is the step at which model state is counted: one after the first,
    so that the optimizer has its own. Gradient norms are recorded in the first `grad_norm_steps`. `at` hears of every
    phase and event as it begins; `finite` tells which tensors of a step were not finite, `comm` what collectives did,
    `pauses` of the collector and of other threads on the rank's core; `batches` tallies what micro-batches held;
    `times_recompute` if `recomputing` is entered.
    """

    def __init__(
        self,
        write: Write,
        timeline: Timeline,
        watch: Callable[[Sequence[StepRecord]], None] = lambda records: None,
        *,
        grad_norm_steps: int = 0,
        memory_step: int | None = None,
        at: Callable[[int | None, str | None], None] = lambda step, phase: None,
        finite: FiniteWatch | None = None,
        comm: CommRecorder | None = None,
        pauses: Pauses | None = None,
        batches: BatchTally | None = None,
        times_recompute: bool = False,
    ) -> None:
        self._write = write
        self._at = at
        self._comm = comm
        self._pauses = pauses
        self._batches = batches
        self._finite = finite
        self._timeline = timeline
        self._grad_norm_steps = grad_norm_steps
        self._memory_step = memory_step
        # In the place of a step where none is open.
        nothing: Any = None
        self._no_step = NotedStep(nothing, nothing, 0)
        self._current = self._no_step
        self._measured = 0
        self._steps = StepWriter(write, timeline, watch, comm)
        self._step = _Step(self)
        self.phase: Callable[[str], AbstractContextManager[None]] = _Phases(self).__getitem__
        """Around one part of a step, by its name. Parts do not nest."""
        self._times_recompute = times_recompute
        self.recomputing = _Recomputing(self)
        """Around each recomputation of activations, within backward."""

    def step(self, step: ScheduledStep) -> AbstractContextManager[None]:
        """Around one optimizer step. It begins where the step or event before it ended: nothing falls between."""
        self._step.next = step
        return self._step

    def drawn(self, batch: Any) -> None:
        """The next micro-batch, before it goes to its device."""
        if self._batches is not None:
            self._batches.note(batch, self._current.step.role)

    def loss(self, loss: torch.Tensor) -> None:
        """One micro-batch's loss on this rank; read later."""
        assert self._current is not self._no_step, "a loss outside of a step"
        value = loss.item() if self._timeline.synchronous else None
        self._current.losses.append(loss.detach() if value is None else value)
        if self._finite is not None:
            self._finite.micro_batch_over(value)

    def gradients_ready(self, run: ModelState) -> None:
        """Before a step's update: the gradients are reduced and complete. Takes what the run asked to be recorded."""
        current = self._current
        if current.step.index < self._grad_norm_steps:
            gradients = run.gradients()
            norms = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32) for part in gradients.parts])
            current.grad_square_sum = (norms / gradients.scale).square().sum()
            current.grad_replicas = gradients.replicas
        if current.step.index == self._memory_step:
            self._write(model_state(current.step.index, run.state()))

    def updated(self, run: ModelState) -> None:
        """After a step's update: whether it was left out, a flag on the device, is read later with the losses."""
        self._current.skipped = run.skipped

    @contextlib.contextmanager
    def event(self, kind: EventKind, step: int) -> Iterator[dict[str, Any]]:
        """Around something between steps, after `step`. What is put into the yielded dict goes into the record."""
        with self._steps.event(kind, step) as values:
            self._at(step, kind)
            yield values

    def drop(self) -> None:
        """Forget the step that is open: it turned out to be none. Its time goes to what comes next."""
        self._current = self._no_step
        if self._comm is not None:
            self._comm.phase = None
            self._comm.close()

    def keep(self) -> None:
        """Something failed, maybe between steps: write those before it, as far as it can be done."""
        self._steps.keep()

    def close(self) -> None:
        """Write what is still pending."""
        self._steps.close()


# What follows stands on the way of all that is measured, between large operations that leave the caches cold: a line
# costs a microsecond. One object serves every step, and one every phase of a name.


class _Step:
    """The step that the probe is in."""

    __slots__ = ("_ended", "_probe", "next")

    next: ScheduledStep

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._ended: Any = None

    def __enter__(self) -> None:
        probe, step = self._probe, self.next
        probe._current = probe._steps.begin(step)
        if probe._pauses is not None and probe._current.begin is not self._ended:
            probe._pauses.take()  # what came in an event, or before the first step, is no step's
        if probe._times_recompute:
            probe._current.recomputed = []
        if probe._comm is not None:
            measured = step.role == "measured"
            number = probe._measured
            probe._comm.open(exact=measured and (number % EXACT_EVERY == EXACT_FIRST or number in EXACT_EARLY))
            probe._measured += measured

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        probe = self._probe
        noted = probe._current
        if error is not None:
            probe._steps.keep()
            return
        if probe._finite is not None:
            noted.outputs, noted.gradients = probe._finite.take()
        if probe._comm is not None:
            noted.comm = probe._comm.close()
        if probe._pauses is not None:
            noted.paused = probe._pauses.take()
        probe._current = probe._no_step
        probe._steps.end(noted)
        self._ended = noted.end


class _Phases(dict[str, "_Phase"]):
    """The probe's phases by name, each made when it is first asked for."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self._probe = probe

    def __missing__(self, name: str) -> _Phase:
        phase = self[name] = (_Data if name == "data" else _Phase)(self._probe, name)
        return phase


class _Phase:
    """A part of the step that the probe is in."""

    def __init__(self, probe: Probe, name: str) -> None:
        self._probe = probe
        self._name = name
        self._comm = probe._comm
        self._mark = probe._timeline.mark
        self._at = probe._at

    def __enter__(self) -> None:
        comm = self._comm
        self._at(self._probe._current.step.index, self._name)
        if comm is not None:
            comm.phase = self._name
            if comm.going_on:
                comm.look(comm.clock())
        self._begin = self._mark()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            return
        comm, self._end = self._comm, self._mark()
        self._probe._current.phases.append((self._name, self._begin, self._end))
        if comm is not None:
            comm.phase = None
            if comm.going_on:
                comm.look(comm.clock())


class _Data(_Phase):
    """The part in which a batch is drawn, which takes the host's time on every device."""

    def __enter__(self) -> None:
        super().__enter__()
        self._begin_ns = self._probe._timeline.host_ns(self._begin)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        super().__exit__(kind, error, trace)
        if error is None:
            self._probe._current.host_data_ns += self._probe._timeline.host_ns(self._end) - self._begin_ns


class _Recomputing:
    """A recomputation that the probe is in. They do not nest."""

    __slots__ = ("_begin", "_probe")

    def __init__(self, probe: Probe) -> None:
        self._probe = probe

    def __enter__(self) -> None:
        self._begin = self._probe._timeline.mark()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        current = self._probe._current
        if current.recomputed is not None:
            current.recomputed.append((self._begin, self._probe._timeline.mark()))
