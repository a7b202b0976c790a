"""Bytes of live tensors, counted by unique storage."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping

import torch

from ..records import EndRecord
from ..used import MemoryRecord

_DIGEST_ELEMENTS = 1 << 20


def storage_bytes(tensors: Iterable[torch.Tensor], seen: set[tuple[str, int]]) -> int:
    """Bytes of the storages behind `tensors`, each counted once and not if in `seen`, to which they are added.

    A view counts as the whole storage that it keeps alive.
    """
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        key = (str(tensor.device), storage.data_ptr())
        if key not in seen and storage.nbytes():
            seen.add(key)
            total += storage.nbytes()
    return total


def model_state(step: int, state: Mapping[str, Iterable[torch.Tensor]]) -> MemoryRecord:
    """The record of `state` (kinds parameters, gradients, optimizer). A storage counts for the first that has it."""
    seen: set[tuple[str, int]] = set()
    return MemoryRecord(
        step=step,
        parameters_bytes=storage_bytes(state["parameters"], seen),
        gradients_bytes=storage_bytes(state["gradients"], seen),
        optimizer_bytes=storage_bytes(state["optimizer"], seen),
    )


def digest(parameters: Iterable[torch.Tensor]) -> str:
    """A number of this rank's parameters that any changed bit changes (to one chance in 2^64), on their device."""
    total = 0
    for parameter in parameters:
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
        # In pieces: a copy of a whole tensor in 64 bits may not fit beside the run's own memory.
        for bits in parameter.detach().contiguous().view(-1).view(integers).split(_DIGEST_ELEMENTS):
            places = torch.arange(1, 2 * bits.numel() + 1, 2, device=bits.device)
            total = (total * 6364136223846793005 + int((bits * places).sum()) + 1) % 2**64
    return f"{total:016x}"


def peaks(device: torch.device, parameters_digest: str | None = None) -> EndRecord:
    """What this process has held at most."""
    # Linux counts ru_maxrss in KiB.
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type != "cuda":
        return EndRecord(rss_peak_bytes=rss, parameters_digest=parameters_digest)
    free, total = torch.cuda.mem_get_info(device)
    return EndRecord(
        rss_peak_bytes=rss,
        allocated_peak_bytes=torch.cuda.max_memory_allocated(device),
        reserved_peak_bytes=torch.cuda.max_memory_reserved(device),
        driver_used_bytes=total - free,
        parameters_digest=parameters_digest,
    )
