"""What this machine can run, line by line. Nothing is changed; torch is loaded in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from ...data.spec import cache_folder
from ...profiles.calibration import Calibration
from ...profiles.storage import free_bytes
from .. import calibrations, strategies
from ..devices import Devices
from ..environment import available_cores, cpu_flags
from ..precision import PRECISIONS, unsupported_precision
from ..refusals import lacks, lacks_compiler
from ..setting import Setting
from ..supervision.oom_killer import amount, memory_cgroups
from .ranks import RanksError, measure_on_ranks

State = Literal["OK", "WARN", "FAIL"]
# Below these a run of the default preset is in danger.
LEAST_MEMORY_BYTES = 2 << 30
LEAST_DISK_BYTES = 1 << 30
LEAST_SHM_BYTES = 64 << 20
LEAST_FILES = 1024
PACKAGES = {
    "torch": "nothing trains without it",
    "deepspeed": "zero1, zero2 and zero3 need it",
    "accelerate": "--engine accelerate needs it",
    "webdataset": "driving scenes are read with it",
    "nvidia-ml-py": "telemetry of GPUs is read with it",
    "torch-tb-profiler": "TensorBoard shows profiler traces with it",
}


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, what was found, and for what is not well the way out."""

    name: str
    state: State
    found: str
    hint: str = ""


def checks(devices: Devices, ranks: int, out: Path) -> Iterator[Check]:
    """Every check, in the order of the lines; `ranks` processes are joined for one, runs would be written to `out`."""
    yield _python()
    yield from map(_package, PACKAGES)
    yield _device(devices)
    yield from (_strategy(name, devices, ranks) for name in strategies.names())
    yield from _precisions(devices)
    yield _compiler(devices)
    yield _cores(ranks, devices)
    yield from _memory()
    yield _files()
    yield _place("run folders", lambda: out.resolve())
    yield _place("cache", cache_folder)
    yield _joined(devices, ranks)
    yield _calibration(devices, ranks)


def _python() -> Check:
    version = sys.version.split()[0]
    return Check("python", "OK" if sys.version_info >= (3, 11) else "FAIL", version, "install Python 3.11 or later")


def _package(name: str) -> Check:
    try:
        return Check(name, "OK", metadata.version(name))
    except metadata.PackageNotFoundError:
        state: State = "FAIL" if name == "torch" else "WARN"
        return Check(name, state, f"not installed: {PACKAGES[name]}", f"pip install {name}")


def _device(devices: Devices) -> Check:
    if devices.kind == "cpu":
        return Check("device", "WARN", f"no CUDA: {devices.why_no_cuda}", "ranks run on this CPU, over gloo")
    return Check("device", "OK", f"{devices.count} x {devices.name}, {amount(devices.memory_bytes or 0)} each")


def _strategy(name: str, devices: Devices, ranks: int) -> Check:
    strategy = strategies.load(name)
    count = 1 if name == "single" else ranks
    setting = Setting(world_size=count, device=devices.kind)
    reason = strategy.unsupported(setting)
    missing = lacks(setting, strategy, devices)
    if reason or missing:
        return Check(f"--strategy {name}", "WARN", reason or "; ".join(missing), "take another strategy")
    return Check(f"--strategy {name}", "OK", f"engines {', '.join(strategy.engines)}")


def _precisions(devices: Devices) -> Iterator[Check]:
    flags = cpu_flags()
    for name, precision in PRECISIONS.items():
        title = f"--precision {name}"
        setting = Setting(world_size=1, device=devices.kind, precision=name)
        if reason := unsupported_precision(name, devices.kind):
            yield Check(title, "WARN", reason.partition(":")[0], "use fp32 or bf16")
        elif missing := lacks(setting, strategies.load("single"), devices):
            yield Check(title, "WARN", missing[0].partition(": ")[2], "use fp16 or fp32")
        elif devices.kind == "cpu" and precision.compute == "bf16" and not flags & {"avx512_bf16", "amx_bf16", "bf16"}:
            yield Check(title, "WARN", "this CPU has no bf16 instructions: torch emulates them", "expect no speed-up")
        elif devices.kind == "cpu" and precision.compute == "fp16" and not flags & {"avx512_fp16", "amx_fp16"}:
            yield Check(title, "WARN", "this CPU has no fp16 instructions: torch emulates them", "expect it to be slow")
        else:
            yield Check(title, "OK", f"computes in {precision.compute}")


def _compiler(devices: Devices) -> Check:
    lack = lacks_compiler(devices.kind)
    return Check("--compile", "WARN" if lack else "OK", lack or "a compiler is there", "runs without --compile work")


def _cores(ranks: int, devices: Devices) -> Check:
    cores, quota = available_cores(), _cpu_quota()
    if quota is not None and quota < cores - 0.01:
        return Check("cores", "WARN", f"{cores}, but the container may use {quota:g} of them", "set --gpus accordingly")
    if devices.kind == "cpu" and ranks > cores:
        return Check("cores", "WARN", f"{cores} for {ranks} ranks: runs are marked oversubscribed", "use fewer ranks")
    return Check("cores", "OK", str(cores))


def _cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores' worth of time that the container may use; None without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota, period = ((root / "cpu" / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _memory() -> Iterator[Check]:
    free = psutil.virtual_memory().available
    limits = [group.limit_bytes - (group.used_bytes or 0) for group in memory_cgroups() if group.limit_bytes]
    least = min([free, *limits])
    why = " (the container's limit)" if limits and min(limits) < free else ""
    state: State = "OK" if least >= LEAST_MEMORY_BYTES else "WARN"
    yield Check("memory", state, f"{amount(least)} free{why}", "a smaller --model or --micro-batch")
    if (shm := free_bytes(Path("/dev/shm"))) is not None:
        state = "OK" if shm > LEAST_SHM_BYTES else "WARN"
        hint = "--workers 0, or a container with more (docker run --shm-size=1g)"
        yield Check("shared memory", state, f"{amount(shm)} free, for batches of loader processes", hint)


def _files() -> Check:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Check("open files", "OK", "as many as are asked for")
    return Check("open files", "OK" if soft >= LEAST_FILES else "WARN", f"up to {soft}", "ulimit -n 4096")


def _place(name: str, where: Callable[[], Path]) -> Check:
    """Whether a file can be written in that folder, or where it would be made, and how much room there is."""
    try:
        path = where()
    except RuntimeError as error:
        return Check(name, "FAIL", f"there is no place for it: {error}", "set XDG_CACHE_HOME to a folder of yours")
    try:
        there = next(place for place in (path, *path.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Check(name, "FAIL", f"{path} cannot be written: {error.strerror}", "give another folder")
    free = shutil.disk_usage(there).free
    return Check(name, "OK" if free >= LEAST_DISK_BYTES else "WARN", f"{path}, {amount(free)} free", "make room")


def _joined(devices: Devices, ranks: int) -> Check:
    """Processes that find each other and add up a number: what every run above one rank begins with."""
    if importlib.util.find_spec("torch") is None:
        return Check("process group", "FAIL", "torch is not installed", "pip install torch")
    backend = "nccl" if devices.kind == "cuda" else "gloo"
    if devices.kind == "cuda" and ranks > devices.count:
        found = f"{ranks} ranks (--gpus), but {devices.count} CUDA devices"
        return Check("process group", "FAIL", found, f"--gpus {devices.count}")
    try:
        found = measure_on_ranks("join", ranks, devices.kind, {}, timeout_seconds=180)
    except RanksError as error:
        return Check("process group", "FAIL", f"{ranks} ranks over {backend}: {error}", "the message is the rank's own")
    if found["sum"] != ranks * (ranks - 1) / 2:
        return Check("process group", "FAIL", f"{ranks} ranks added up to {found['sum']}", "do not train here")
    return Check("process group", "OK", f"{ranks} ranks joined over {backend} in {found['seconds'] * 1e3:.0f} ms")


def _calibration(devices: Devices, ranks: int) -> Check:
    found = calibrations.fitting(devices.kind, devices.name, ranks)
    broken = calibrations.read()[1]
    if broken and found is None:
        path, why = next(iter(broken.items()))
        return Check("calibration", "WARN", f"{path} cannot be read: {why}", "scalelab doctor --calibrate makes one")
    if found is None:
        return Check("calibration", "WARN", "none for this machine: rates are not known", "scalelab doctor --calibrate")
    return trusted(found)


def trusted(calibration: Calibration) -> Check:
    """The line of a calibration that there is: what it is of, and what speaks against its rates."""
    made = f"{calibration.name} of {calibration.made_utc}, {calibration.ranks} ranks"
    if not calibration.doubts:
        return Check("calibration", "OK", made)
    return Check("calibration", "WARN", f"{made}: {'; '.join(calibration.doubts)}", "repeat on a quiet machine")
