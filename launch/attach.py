"""`scalelab.Probe.attach`: the run folder of a job that runs under its own loop.

    probe = scalelab.Probe.attach(model, optimizer)
    for batch in probe.batches(loader):
        with probe.step():
            ...

Nothing of the job's code changes: forward is seen by hooks of the model, backward at torch.autograd.backward, the
update by hooks of the optimizer, collectives by a recording group in the place of the default one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import distributed, nn

from ..profiles.analysis.load import NO_OWN_STEP
from ..profiles.capture import probe as capture
from ..profiles.capture.memory import peaks
from ..profiles.capture.pauses import watched_pauses
from ..profiles.capture.seams import Seams
from ..profiles.capture.timeline import timeline_for
from ..profiles.records import EventKind
from ..profiles.storage import OutputError
from . import own_calls as calls
from .assemble import ended, start_record
from .own_folder import OwnFolder, what_ended_the_process
from .own_job import OwnStep, comm_of, own_rank, run_json, samples_in, share_folder

WARMUP_STEPS = 5


class Probe:
    """Measures a job's own loop. Made by `attach`, ended by `close` or with the process."""

    _running: ClassVar[Probe | None] = None

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        optimizer: Any = None,
        *,
        out: str | os.PathLike[str] = "runs",
        name: str = "own-loop",
        warmup: int = WARMUP_STEPS,
    ) -> Probe:
        """Measure training of `model` from now on; call it on every rank.

        After init_process_group and, for its collectives to be seen, before a wrapper like DDP. `optimizer` is a torch
        optimizer, or something that wraps one; a DeepSpeed engine is given to `follow`, once it is made. The first
        `warmup` steps do not count. Raises ValueError when the process group is missing or `warmup` is no number of
        steps, OutputError when `out` cannot be written.
        """
        calls.check_warmup(warmup)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
            raise ValueError("Probe.attach: WORLD_SIZE is above 1: call torch.distributed.init_process_group first")
        try:
            return cls(model, optimizer, Path(out), name, warmup)
        except OutputError as error:
            raise error from None  # which system call it was in is nobody's question

    def __init__(self, model: nn.Module, optimizer: Any, out: Path, name: str, warmup: int) -> None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._device = device
        self._rank = own_rank()
        self._pauses = contextlib.ExitStack()
        self._warmup = warmup
        self._index = 0
        self._samples = 0
        self._drawn: list[int] = []
        # Batches drawn outside of a step since the last one.
        self._unused = 0
        self._say_once = calls.once()
        self._open: AbstractContextManager[None] | None = None
        self._inside = False
        # What lies before the next step is no part of it: a loader came to its end, or a step failed.
        self._apart: EventKind | None = None
        self._failing = False
        self._in_event = False
        # The loader came to its end within the open step.
        self._ended_within = False
        self.folder = share_folder(self._rank, out, name)
        told = run_json(model, self.folder, name, self._rank, device)
        comm = comm_of(model, self._rank, device, told)
        self._own = OwnFolder(self.folder, self._rank, told)
        self._own.write(start_record(self._rank, device, torch.get_num_threads()))
        pauses = self._pauses.enter_context(watched_pauses())
        self._probe = capture.Probe(self._own.write, timeline_for(device), comm=comm, pauses=pauses)
        self._seams = Seams(model, optimizer, self._enter)
        self._groups: list[dict[str, Any]] = getattr(optimizer, "param_groups", None) or []
        self._current = OwnStep(0, "warmup")
        self._closed = False
        if Probe._running is not None and self._rank.rank == 0:
            self._say_once(calls.one_runs(Probe._running.folder.path, self.folder.path))
        Probe._running = self
        atexit.register(self._end_alone)

    def follow(self, model: nn.Module, optimizer: Any = None) -> None:
        """Watch `model` and `optimizer` in the place of what was attached: an engine that was made around it since."""
        if self._closed:
            self._say_once(calls.CLOSED)
            return
        self._seams.remove()
        self._seams = Seams(model, optimizer, self._enter)
        self._groups = getattr(optimizer or model, "param_groups", None) or getattr(
            getattr(model, "optimizer", None), "param_groups", []
        )

    def batches(self, loader: Iterable[Any], samples: Callable[[Any], int] = samples_in) -> Iterator[Any]:
        """The batches of `loader`; the wait for each is the `data` of the step that it is for. `samples` counts those
        of a batch. What the loop does from the end of `loader` to its next step is `between_epochs`, and in no step."""
        source = iter(loader)
        while True:
            with self._enter("data"):
                try:
                    batch = next(source)
                except StopIteration:
                    break
            count = samples(batch)
            if not self._in_event:
                self._samples += count
                self._drawn.append(count)
                self._unused += not self._inside
            try:
                yield batch
            except GeneratorExit:  # the loop was left before the loader's end
                if not self._inside:
                    break
                raise
        self._ended_within = self._inside
        if not self._inside:
            self._drop()
        self._apart = "between_epochs"

    @contextlib.contextmanager
    def event(self, kind: calls.OwnEvent) -> Iterator[None]:
        """Around an evaluation or a checkpoint between two steps: its time is in no step, with that of batches
        that it draws. Raises ValueError for another kind, within a step and within another event."""
        calls.check_event(kind, in_step=self._inside, in_event=self._in_event)
        if self._closed:
            self._say_once(calls.CLOSED)
            yield
            return
        if self._open is not None:  # a batch was drawn: the wait for it becomes the event's
            samples, drawn = self._samples, self._drawn
            self._drop()
            self._samples, self._drawn = samples, drawn
            self._say_that_none_was_made()
        apart = self._apart
        self._set_apart()
        self._in_event = True
        try:
            with calls.recorded_failing(self._probe.event(kind, max(0, self._index - 1))):
                yield
        finally:
            self._apart, self._in_event = apart, False

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around one optimizer step: its forwards, its backwards and its update. Raises ValueError within another step
        and within an event."""
        calls.check_step(in_step=self._inside, in_event=self._in_event)
        if self._closed:
            self._say_once(calls.CLOSED)
            yield
            return
        self._begin()
        self._inside, self._ended_within = True, False
        try:
            yield
        except StopIteration:
            self._left_out()
            raise
        except BaseException as error:
            self._failed(error)
            raise
        if self._closed or (self._ended_within and not self._drawn):
            self._left_out()
            return
        self._seams.end()
        self._inside = False
        self._end(None)
        if self._failing:
            self._failing = False
            self._own.gone_on()

    def loss(self, loss: torch.Tensor | float) -> None:
        """Within a step: a micro-batch's loss on this rank, for the record: a number, or a tensor of one element, which
        is read later, without waiting."""
        if self._closed:
            self._say_once(calls.CLOSED)
        elif self._open is None:
            self._say_once(calls.NO_STEP)
        elif isinstance(number := calls.number_in(loss, self._device), str):
            self._say_once(calls.no_number(number))
        else:
            self._probe.loss(number)

    def close(self) -> None:
        """On all ranks together: write what is left, and on rank 0 the summary and the report.

        A process that ends without it writes its own part and waits for nobody: its peers may be gone, or wait for it.
        """
        self._end_rank(together=True)

    def _end_alone(self) -> None:
        if not self._failing and (error := what_ended_the_process()) is not None:
            self._own.failed(error, None)
            self._failing = True
        self._end_rank(together=False)

    def _end_rank(self, *, together: bool) -> None:
        if self._closed:
            return
        self._closed = True
        Probe._running = None if Probe._running is self else Probe._running
        atexit.unregister(self._end_alone)
        if not self._failing:
            self._say_that_none_was_made()
        self._drop()
        self._seams.remove()
        self._probe.close()
        self._pauses.close()
        self._own.write(ended(peaks(self._device)))
        self._own.close()
        if together and not self._failing and self._rank.world_size > 1 and distributed.is_initialized():
            distributed.barrier()
        self._own.report(at_exit=not together)

    def _say_that_none_was_made(self) -> None:
        """Once, where batches were drawn for steps of which none came."""
        if self._index == 0 and self._unused > 1:
            self._say_once(NO_OWN_STEP)

    def _begin(self) -> None:
        if self._open is None:
            self._set_apart()
            self._current = OwnStep(self._index, "warmup" if self._index < self._warmup else "measured")
            self._open = self._probe.step(self._current)
            self._open.__enter__()

    def _set_apart(self) -> None:
        """Make an event of what lies between the last step and now, where that belongs to no step."""
        if self._apart is not None and self._index:
            with self._probe.event(self._apart, self._index - 1):
                pass
        self._apart = None

    def _end(self, error: BaseException | None) -> None:
        if self._open is None:  # `close` came within the step
            return
        self._current.samples = self._samples
        self._current.lr = float(self._groups[0]["lr"]) if self._groups else 0.0
        self._own.batch_is(self._drawn)
        opened, self._open = self._open, None
        self._samples, self._drawn = 0, []
        self._index += 1
        opened.__exit__(type(error) if error else None, error, None)

    def _drop(self) -> None:
        """A step that was begun by asking for a batch, and had none, is no step."""
        if self._open is not None:
            self._probe.drop()
            self._open, self._samples, self._drawn = None, 0, []

    def _enter(self, phase: str) -> AbstractContextManager[None]:
        """The probe's phase, within a step; outside of one only waiting for a batch opens it."""
        if phase == "data" and not (self._closed or self._in_event):
            # A batch that is drawn within forward is no part of it.
            self._seams.end()
            self._begin()
        if self._open is None or (phase != "data" and not self._inside):
            return contextlib.nullcontext()
        return self._probe.phase(phase)

    def _left_out(self) -> None:
        """The step that is open turned out to be none, and nothing failed: whoever draws batches by `next` is told by
        StopIteration that there are no more, and goes on."""
        self._inside = False
        self._seams.abandon()
        self._drop()
        self._apart = "between_epochs"
        self._say_once(calls.CLOSED if self._closed else calls.ENDED_WITHIN)

    def _failed(self, error: BaseException) -> None:
        self._failing = True
        self._inside = False
        self._seams.abandon()
        self._end(error)
        self._apart = "failed_step"
        self._own.failed(error, self._index - 1)
