"""The parts of a rank's job put together: determinism, who it is, and what happens between its steps."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from ..data.skipping import BadSamples
from ..models.contract import ModelSource
from ..models.driving import DrivingModel
from ..profiles.capture.finite import FiniteWatch
from ..profiles.capture.probe import Probe
from ..profiles.capture.window import WindowProbe
from ..profiles.records import EndRecord, StartRecord
from ..profiles.runfolder import RunFolder
from . import checkpoint
from .config import RunConfig, is_user_model
from .environment import boot_id, cpu_name, versions
from .evaluation import Evaluation
from .loop import Event
from .ranks import Rank, keeps_checkpoints
from .schedule import Step
from .setting import Setting
from .strategies._contract import Sharded


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything one rank trains with."""

    config: RunConfig
    setting: Setting
    source: ModelSource
    run: Sharded
    device: torch.device
    rank: Rank
    folder: RunFolder
    finite: FiniteWatch | None = None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(width, height) of the images that our own model takes; None for a user's."""
        if is_user_model(self.config.model):
            return None
        assert isinstance(self.run.module, DrivingModel)
        return self.run.module.image_size


def prepare_determinism(config: RunConfig) -> None:
    """With `--deterministic`, kernels that give the same bits each time, or an error where there are none."""
    if config.deterministic:
        # cuBLAS reads this when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


class Saver:
    """Writes checkpoints of a job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._saved: int | None = None
        self.failed: checkpoint.CheckpointFailed | None = None
        """The last failure, alike on all ranks."""

    def __call__(self, step: int) -> dict[str, Any]:
        """Write the state after step `step`, on all ranks together. One that fails is noted, training goes on."""
        job = self._job
        try:
            found = checkpoint.save(job.run, job.folder, step=step + 1, strategy=job.config.strategy)
        except checkpoint.CheckpointFailed as error:
            self.failed = error
            return {"failed": str(error), "rank": error.rank, "hint": error.hint}
        self._saved = step
        return found

    def before_leaving(self, probe: Probe | WindowProbe, step: int) -> None:
        """Write the state after `step`, unless that was done."""
        if not keeps_checkpoints():
            why, hint = "hosts that share no disk keep no checkpoint", "give an --out that all of them share"
            self.failed = checkpoint.CheckpointFailed(0, why, hint=hint)
        elif self._saved != step:
            with probe.event("checkpoint", step) as values:
                values.update(self(step))


def events_of(job: Job, saver: Saver, bad: BadSamples) -> list[Event]:
    """What happens between steps: evaluation, then checkpoints."""
    config = job.config
    final = config.warmup + (config.steps or 0) - 1

    def every(steps: int) -> Callable[[Step], bool]:
        return lambda step: (step.index + 1) % steps == 0 or step.index == final

    events: list[Event] = []
    if config.eval_every:
        assert isinstance(job.run.module, DrivingModel)
        evaluate = Evaluation(job.run.module, config, job.rank, job.device, bad)

        def evaluated(step: Step) -> dict[str, Any]:
            found = evaluate()
            job.run.reshard()
            return found

        events.append(("evaluation", every(config.eval_every), evaluated))
    if config.save_every:
        events.append(("checkpoint", every(config.save_every), lambda step: saver(step.index)))
    return events


def ended(end: EndRecord) -> EndRecord:
    """`end` as of now."""
    return msgspec.structs.replace(end, monotonic_seconds=time.monotonic())


def start_record(rank: Rank, device: torch.device, threads: int) -> StartRecord:
    """The record that opens this rank's file."""
    return StartRecord(
        rank=rank.rank,
        local_rank=rank.local_rank,
        world_size=rank.world_size,
        host=socket.gethostname(),
        boot_id=boot_id(),
        pid=os.getpid(),
        device=device.type,
        device_name=describe_device(device),
        device_uuid=str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None,
        wall_seconds=time.time(),
        monotonic_seconds=time.monotonic(),
        threads=threads,
        versions=versions(),
    )


def describe_device(device: torch.device) -> str:
    """The name of the card, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
