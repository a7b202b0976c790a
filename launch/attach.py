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
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..profiles.capture import probe as capture
from ..profiles.capture.comm import CommRecorder
from ..profiles.capture.group import record_default_group
from ..profiles.capture.memory import peaks
from ..profiles.capture.pauses import watched_pauses
from ..profiles.capture.seams import Seams
from ..profiles.capture.timeline import timeline_for
from ..profiles.records import Role
from ..profiles.runfolder import appending
from .assemble import ended, start_record
from .errors import Exit
from .lock import locked
from .own_job import own_rank, run_json, samples_in, share_folder
from .supervision.verdict import status
from .text import plain, redacted

WARMUP_STEPS = 5


class Probe:
    """Measures a job's own loop. Made by `attach`, ended by `close` or with the process."""

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
        `warmup` steps do not count. Raises ValueError when the process group is missing, OutputError when `out` cannot
        be written.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
            raise ValueError("Probe.attach: WORLD_SIZE is above 1: call torch.distributed.init_process_group first")
        return cls(model, optimizer, Path(out), name, warmup)

    def __init__(self, model: nn.Module, optimizer: Any, out: Path, name: str, warmup: int) -> None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._device = device
        self._rank = own_rank()
        self._stack = contextlib.ExitStack()
        self._warmup = warmup
        self._index = 0
        self._samples = 0
        self._open: AbstractContextManager[None] | None = None
        self._inside = False
        comm = None
        self.folder = share_folder(self._rank, out, name)
        self._leads = self._rank.rank == 0
        self._run_json = run_json(model, self.folder, name, self._rank, device)
        if isinstance(model, DistributedDataParallel):
            # Its reducer keeps the group that it was made with.
            self._run_json["comm_unknown"] = "the probe was attached after the model was wrapped"
            warnings.warn(
                "Probe.attach after the model was wrapped: its collectives are not seen; attach before", stacklevel=3
            )
        elif self._rank.world_size > 1:
            comm = CommRecorder()
            comm.on(device)
            record_default_group(comm, device.type)
        if self._leads:
            self._stack.enter_context(locked(self.folder.path))
            self.folder.write("run.json", self._run_json)
            self.folder.write("status.json", status("running", None))
        self._write = self._stack.enter_context(appending(self.folder.rank_file(self._rank.rank)))
        self._write(start_record(self._rank, device, torch.get_num_threads()))
        pauses = self._stack.enter_context(watched_pauses())
        self._probe = capture.Probe(self._write, timeline_for(device), comm=comm, pauses=pauses)
        self._seams = Seams(model, optimizer, self._enter)
        self._groups: list[dict[str, Any]] = getattr(optimizer, "param_groups", None) or []
        self._current = _OwnStep(0, "warmup")
        self._closed = False
        self._has_failed = False
        atexit.register(self._end_alone)

    def follow(self, model: nn.Module, optimizer: Any = None) -> None:
        """Watch `model` and `optimizer` in the place of what was attached: an engine that was made around it since."""
        self._seams.remove()
        self._seams = Seams(model, optimizer, self._enter)
        self._groups = getattr(optimizer or model, "param_groups", None) or getattr(
            getattr(model, "optimizer", None), "param_groups", []
        )

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of `loader`; the wait for each is the `data` of the step that it is for."""
        source = iter(loader)
        while True:
            with self._enter("data"):
                try:
                    batch = next(source)
                except StopIteration:
                    break
            self._samples += samples_in(batch)
            yield batch
        self._drop()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around one optimizer step: its forwards, its backwards and its update."""
        self._begin()
        self._inside = True
        try:
            yield
        except BaseException as error:
            self._failed(error)
            raise
        self._seams.end()
        self._inside = False
        self._end(None)

    def loss(self, loss: torch.Tensor) -> None:
        """Within a step: a micro-batch's loss on this rank, for the record. Read later, without waiting."""
        self._probe.loss(loss)

    def close(self) -> None:
        """On all ranks together: write what is left, and on rank 0 the summary and the report.

        A process that ends without it writes its own part and waits for nobody: its peers may be gone, or wait for it.
        """
        self._end_rank(together=True)

    def _end_alone(self) -> None:
        self._end_rank(together=False)

    def _end_rank(self, *, together: bool) -> None:
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._end_alone)
        self._drop()
        self._seams.remove()
        self._probe.close()
        self._write(ended(peaks(self._device)))
        if together and not self._has_failed and self._rank.world_size > 1 and distributed.is_initialized():
            distributed.barrier()
        if self._leads:
            state = self.folder.read("status.json") or {}
            if state.get("state") == "running":
                self.folder.write("status.json", status("finished", Exit.OK))
            self._report()
        self._stack.close()

    def _report(self) -> None:
        """The summary and the report. Whatever keeps them from being made, the job goes on: its records are there."""
        from .reporting import report_after

        try:
            report_after(self.folder, _say)
        except Exception as error:
            # Not a warning: a job may have made errors of those.
            with contextlib.suppress(Exception):
                _say(f"no report: {type(error).__name__}: {error}; scalelab report {self.folder.path} makes it")

    def _begin(self) -> None:
        if self._open is None:
            self._current = _OwnStep(self._index, "warmup" if self._index < self._warmup else "measured")
            self._open = self._probe.step(self._current)
            self._open.__enter__()

    def _end(self, error: BaseException | None) -> None:
        assert self._open is not None
        self._current.samples = self._samples
        self._current.lr = float(self._groups[0]["lr"]) if self._groups else 0.0
        if self._leads and self._run_json["config"]["global_batch"] is None and self._samples:
            self._run_json["config"].update(
                micro_batch=self._samples, global_batch=self._samples * self._rank.world_size
            )
            self.folder.write("run.json", self._run_json)
        opened, self._open = self._open, None
        self._samples = 0
        self._index += 1
        opened.__exit__(type(error) if error else None, error, None)

    def _drop(self) -> None:
        """A step that was begun by asking for a batch, and had none, is no step."""
        if self._open is not None:
            self._probe.drop()
            self._open = None

    def _enter(self, phase: str) -> AbstractContextManager[None]:
        """The probe's phase, within a step; outside of one only waiting for a batch opens it."""
        if phase == "data":
            self._begin()
        if self._open is None or (phase != "data" and not self._inside):
            return contextlib.nullcontext()
        return self._probe.phase(phase)

    def _failed(self, error: BaseException) -> None:
        self._has_failed = True
        self._inside = False
        self._seams.abandon()
        self._end(error)
        where = {"rank": self._rank.rank, "host": socket.gethostname(), "phase": None, "step": self._index - 1}
        cause = redacted(f"{type(error).__name__}: {error}")
        with contextlib.suppress(Exception):
            if (self.folder.read("status.json") or {}).get("state") == "running":
                self.folder.write("status.json", status("failed", Exit.WORKER_DIED, culprit=where, cause=cause))


def _say(text: str) -> None:
    print(plain(f"scalelab: {text}"), file=sys.stderr, flush=True)


@dataclass
class _OwnStep:
    """A step of which the samples and the rate are known when it is over."""

    index: int
    role: Role
    lr: float = 0.0
    samples: int = 0
