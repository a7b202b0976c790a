"""Which devices this machine has, found without torch so that the command line starts at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from .environment import cpu_name


@dataclass(frozen=True)
class Devices:
    """The devices a run would use: `count` CUDA cards of at least `memory_bytes` each, or the CPU (count 0)."""

    kind: Literal["cpu", "cuda"]
    count: int
    name: str
    memory_bytes: int | None = None
    why_no_cuda: str = ""
    compute_capability: tuple[int, int] | None = None


def detect() -> Devices:
    """CUDA cards that torch would see, else the CPU with the reason why there is no CUDA."""
    try:
        torch_version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch_version = ""
    if torch_version.endswith("+cpu"):
        return Devices("cpu", 0, cpu_name(), why_no_cuda=f"torch {torch_version} is built without CUDA")
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # any failure of the driver's library means the same: no card to be had
        return Devices("cpu", 0, cpu_name(), why_no_cuda=f"the NVIDIA driver does not answer ({error})")
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = len(handles) if visible is None else len([part for part in visible.split(",") if part.strip()])
        count = min(count, len(handles))
        if count == 0:
            return Devices("cpu", 0, cpu_name(), why_no_cuda="no CUDA device is visible")
        memory = min(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles)
        name = pynvml.nvmlDeviceGetName(handles[0])
        major, minor = min(tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)) for handle in handles)
        name = name.decode() if isinstance(name, bytes) else name
        return Devices("cuda", count, name, memory, compute_capability=(major, minor))
    finally:
        pynvml.nvmlShutdown()
