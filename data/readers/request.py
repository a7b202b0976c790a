"""What both readers ask of their caller, checked in one place before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError
from ..manifest import SPLITS, Manifest, open_folder
from ..shards import SampleEntry, Shard

_LEAST = {
    "world_size": 1,
    "rank": 0,
    "micro_batch": 1,
    "accumulation": 1,
    "workers": 0,
    "prefetch": 1,
    "seed": 0,
    "start_step": 0,
}


def open_request(
    folder: Path | str, split: str, *, pin: bool, worker_init: Callable[[int], None] | None, **numbers: int
) -> tuple[Manifest, list[tuple[Shard, SampleEntry]], dict[str, Any]]:
    """(manifest, samples of `split`, keyword arguments for torch's DataLoader), or a `DataError` that says why not.

    `numbers` are those of `_LEAST`, by their names in the readers' signatures.
    """
    for name, least in _LEAST.items():
        if numbers[name] < least:
            raise DataError(f"{name} = {numbers[name]}: must be at least {least}")
    rank, world_size = numbers["rank"], numbers["world_size"]
    if rank >= world_size:
        raise DataError(f"rank = {rank}: must be below world_size = {world_size}")
    if split not in SPLITS:
        raise DataError(f"split = {split!r}: allowed are {', '.join(SPLITS)}")
    if pin and not torch.cuda.is_available():
        raise DataError("pin = True: page-locked memory needs a CUDA device, and there is none; leave it off")
    manifest = open_folder(folder)
    entries = manifest.split(split)
    micro_batch, accumulation = numbers["micro_batch"], numbers["accumulation"]
    needed = micro_batch * accumulation * world_size
    if len(entries) < needed:
        raise DataError(
            f"{folder}: split {split!r} has {len(entries)} samples, one global batch needs {needed} "
            f"(micro-batch {micro_batch} × accumulation {accumulation} × ranks {world_size}); "
            "make the batch smaller or the dataset larger"
        )
    options: dict[str, Any] = {"num_workers": numbers["workers"], "pin_memory": pin}
    if numbers["workers"]:
        options |= {"prefetch_factor": numbers["prefetch"], "worker_init_fn": worker_init}
    return manifest, entries, options
