"""What CUDA's caching allocator and the driver say of one step. There is none of that on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from ..used import AllocatorRecord


class Allocator:
    """`begin` and `end` around a step. `cuda` is torch.cuda, or what answers in its place."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._earlier = (0, 0)

    def begin(self) -> None:
        """Peaks are counted from here on; the highest that they were is kept."""
        allocated, reserved = self._peaks()
        self._earlier = (max(self._earlier[0], allocated), max(self._earlier[1], reserved))
        self._cuda.reset_peak_memory_stats(self._device)

    def end(self) -> AllocatorRecord:
        """Since `begin`."""
        allocated, reserved = self._peaks()
        free, total = self._cuda.mem_get_info(self._device)
        return AllocatorRecord(
            allocated_peak_bytes=allocated,
            reserved_peak_bytes=reserved,
            earlier_allocated_peak_bytes=self._earlier[0],
            earlier_reserved_peak_bytes=self._earlier[1],
            reserved_bytes=self._cuda.memory_reserved(self._device),
            driver_used_bytes=total - free,
            retries=self._cuda.memory_stats(self._device).get("num_alloc_retries", 0),
        )

    def _peaks(self) -> tuple[int, int]:
        return self._cuda.max_memory_allocated(self._device), self._cuda.max_memory_reserved(self._device)
