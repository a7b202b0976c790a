"""What is recorded of the machine and the code: an allow-list, never the whole environment. No torch."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("scalelab", "torch", "deepspeed", "accelerate", "webdataset", "numpy", "simplejpeg", "pillow")
VARIABLES = re.compile(
    r"CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|MKL_NUM_THREADS|(NCCL|GLOO|TORCH_NCCL|TORCH_DISTRIBUTED)_[A-Z0-9_]+"
    r"|PYTORCH_(CUDA_)?ALLOC_CONF|SLURM_(JOB_ID|NNODES|NTASKS|PROCID|NODEID|JOB_PARTITION)"
)


def capture() -> dict[str, Any]:
    """Host, processor, versions, chosen variables and the state of the code."""
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "versions": versions(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)},
        "git": git_state(Path(__file__).parent),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def boot_id() -> str:
    """Tells one boot of one machine from another: ranks with the same one share their clocks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()}-{sys.platform}"


def now() -> dict[str, Any]:
    """This instant by the host's clocks: `run.json` has a run's begin so."""
    return {"wall_seconds": time.time(), "monotonic_seconds": time.monotonic(), "boot_id": boot_id()}


def file_system(path: Path) -> str | None:
    """The type of the file system that holds `path`, as the kernel names it."""
    place = path.resolve()
    mounted = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    return next((mounted[above] for above in (place, *place.parents) if above in mounted), None)


def started(pid: int) -> float | None:
    """When process `pid` started, in clock ticks since boot (Linux) or seconds; None if it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):
        text = ""
    if text:
        # The name in parentheses may hold anything; state and start time are the fields 3 and 22 of proc(5).
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else float(fields[19])
    try:
        # Where there is no /proc. psutil's own figure moves with the wall clock on Linux.
        return None if os.path.exists("/proc/self/stat") else psutil.Process(pid).create_time()
    except (psutil.Error, ValueError, OverflowError):
        return None


def cpu_name() -> str:
    """The processor's name as the kernel gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_flags() -> set[str]:
    """The processor's features as the kernel names them; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    # x86 calls them flags, Arm features.
    return next(
        (set(line.partition(":")[2].split()) for line in lines if line.startswith(("flags", "Features"))), set()
    )


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a checkout. Remote addresses are not recorded."""
    try:
        run = ["git", "-C", str(folder)]
        commit = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run(
            [*run, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
