"""What can be known of a job that runs under its own loop: its rank, its folder, its run.json, its batches."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..profiles.capture.comm import CommRecorder
from ..profiles.capture.group import record_default_group
from ..profiles.records import SCHEMA, Role
from ..profiles.runfolder import RunFolder
from ..profiles.storage import OutputError
from . import calibrations, environment
from .assemble import describe_device
from .ranks import Rank
from .text import plain, redacted_argument

# As --precision names them.
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def own_rank() -> Rank:
    """This process among those of its default group; alone where there is none."""
    if not distributed.is_initialized():
        return Rank(rank=0, local_rank=0, world_size=1, local_world_size=1)
    rank, world = distributed.get_rank(), distributed.get_world_size()
    local, here = (int(os.environ.get(name, "-1")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    return Rank(
        rank=rank,
        local_rank=rank if local < 0 else local,
        world_size=world,
        local_world_size=world if here < 0 else here,
    )


def share_folder(rank: Rank, out: Path, name: str) -> RunFolder:
    """One folder for all ranks: rank 0 makes it, or tells the others why it could not."""
    if rank.world_size == 1:
        return RunFolder.create(out, name)
    told: list[Any] = [None]
    if rank.rank == 0:
        try:
            told = [RunFolder.create(out, name).run_id]
        except OutputError as error:
            told = [error]
    distributed.broadcast_object_list(told)
    if isinstance(told[0], OutputError):
        raise told[0]
    path = out.resolve() / told[0]
    return RunFolder(path) if path.is_dir() else RunFolder.join(out, told[0])[0]


def run_json(model: nn.Module, folder: RunFolder, name: str, rank: Rank, device: torch.device) -> dict[str, Any]:
    """What can be known of a job that is not ours. Batch sizes are filled in after the first step."""
    parameters = list(model.parameters())
    dtypes = sorted({DTYPES.get(parameter.dtype, str(parameter.dtype)) for parameter in parameters})
    cores = environment.available_cores()
    return {
        "schema": SCHEMA,
        "run_id": folder.run_id,
        "name": name,
        "command": [redacted_argument(argument) for argument in sys.argv],
        "config": {
            "strategy": "own",
            "engine": "own",
            "launcher": "own",
            "device": device.type,
            "nodes": max(1, rank.world_size // max(1, rank.local_world_size)),
            "model": type(model).__name__,
            "micro_batch": None,
            "grad_accumulation": None,
            "global_batch": None,
            "checkpointing": None,
            "compile": None,
            "probe": "on",
            "record_grad_norm": False,
        },
        "precision": {**dict.fromkeys(("name", "compute", "grad", "reduce", "master")), "param": "/".join(dtypes)},
        "target": None,
        "world_size": rank.world_size,
        "threads_per_rank": torch.get_num_threads(),
        "oversubscribed": device.type == "cpu" and rank.local_world_size * torch.get_num_threads() > cores,
        "device_name": describe_device(device),
        "notes": ["measured within its own loop, by Probe.attach"],
        "data": None,
        "began": environment.now(),
        "environment": environment.capture(),
        "calibration": calibrations.for_run(device.type, describe_device(device), rank.world_size),
        "model": {
            "name": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        },
    }


def say(text: str) -> None:
    """Print to the job's stderr. No warning: a job may have made errors of those."""
    print(plain(f"scalelab: {text}"), file=sys.stderr, flush=True)


def is_wrapped(model: nn.Module) -> bool:
    """Whether `model` is, or holds, what has taken the process group already: DDP, FSDP, sharded parameters."""
    kinds: list[type] = [DistributedDataParallel]
    # Whoever has not imported them has made none.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kinds += [getattr(fsdp, name) for name in ("FullyShardedDataParallel", "FSDPModule") if hasattr(fsdp, name)]
    if any(isinstance(module, tuple(kinds)) for module in model.modules()):
        return True
    sharded = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return sharded is not None and any(isinstance(parameter, sharded) for parameter in model.parameters())


def comm_of(model: nn.Module, rank: Rank, device: torch.device, told: dict[str, Any]) -> CommRecorder | None:
    """Records the default group's collectives from now on; None where there are none, or where `model` was wrapped
    before, which `told` says then."""
    if is_wrapped(model):
        # A wrapper keeps the group that it was made with.
        told["comm_unknown"] = "the probe was attached after the model was wrapped; attach before DDP wraps the model"
        warnings.warn(
            "Probe.attach after the model was wrapped: its collectives are not seen; attach before DDP wraps it",
            stacklevel=4,
        )
        return None
    if rank.world_size == 1:
        return None
    comm = CommRecorder()
    comm.on(device)
    record_default_group(comm, device.type)
    return comm


def _one_each(values: Sequence[Any], *, within: bool) -> bool:
    """Whether a list has an entry for each sample: mappings of the same keys; within a batch, tensors that no collating
    could have put together, or images (a batch of images has four dimensions)."""
    if all(isinstance(value, Mapping) for value in values):
        return len({frozenset(value) for value in values}) == 1
    if not within or not all(isinstance(value, torch.Tensor) for value in values):
        return False
    return len({value.shape for value in values}) > 1 or values[0].dim() <= 3


def samples_in(batch: Any, *, within: bool = False) -> int:
    """Samples in a batch: the length of its first tensor, or of the first list in it that has a tensor or a mapping for
    each sample, as detectors' batches do; 0 where there is none."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.dim() else 0
    if isinstance(batch, list | tuple) and batch and _one_each(batch, within=within):
        return len(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((count for value in values if (count := samples_in(value, within=True))), 0)


@dataclass
class OwnStep:
    """A step of which the samples and the rate are known when it is over."""

    index: int
    role: Role
    lr: float = 0.0
    samples: int = 0
