"""Lack of memory, seen without torch: errors that say so, the kernel's OOM killer, cgroup limits, a full /dev/shm."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
SHM = "/dev/shm"
# Docker's default size of /dev/shm.
DOCKER_SHM_BYTES = 64 << 20
# cgroup v1 says "no limit" with the largest multiple of the page size below 2^63.
NO_LIMIT = 1 << 62

# How torch and libraries under it word a failed allocation in a plain RuntimeError. They begin so; a user's sentence
# that mentions memory does not.
_WORDED = re.compile(
    r"\[enforce fail at alloc_cpu\.cpp:\d+\].*DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|CUDA error: out of memory"
    r"|CUDA error: CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDA out of memory\. Tried to allocate"
    r"|unable to mmap \d+ bytes from file .*Cannot allocate memory"
    r"|std::bad_alloc$",
    re.DOTALL,
)
_ASKED = re.compile(
    r"(?:tried to allocate|unable to allocate|unable to mmap) ([\d.]+) (bytes|[KMGTPE]iB)", re.IGNORECASE
)
_UNITS = {"bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50, "eib": 1 << 60}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or one that it was raised from or while handling, is a failed allocation on host or device."""
    return any(map(_is_failed_allocation, chain(error)))


def asked_bytes(error: BaseException) -> int | None:
    """Bytes that the failed allocation asked for, where its message has them."""
    for link in filter(_is_failed_allocation, chain(error)):
        if found := _ASKED.search(str(link)):
            return round(float(found[1]) * _UNITS[found[2].lower()])
    return None


def _is_failed_allocation(error: BaseException) -> bool:
    kind = type(error)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # Torch's classes are met by name: this module loads without torch.
    from_torch = kind.__module__.split(".")[0] == "torch"
    if from_torch and kind.__name__ == "OutOfMemoryError":
        return True
    return (kind is RuntimeError or from_torch) and _WORDED.match(str(error)) is not None


def chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, its causes and contexts, and the members of groups, each once. `raise … from None` ends a chain."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop(0)
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting.append(link.__cause__)
        waiting.append(None if link.__suppress_context__ else link.__context__)
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)


def amount(count: float) -> str:
    """Bytes for a person."""
    for unit, text in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(count) >= unit:
            return f"{count / unit:.1f} {text}"
    return f"{count:.0f} B"


@dataclass(frozen=True)
class Cgroup:
    """A memory cgroup: its folder, its limit in bytes (None without one), and what it holds now."""

    path: Path
    version: int

    @property
    def limit_bytes(self) -> int | None:
        value = _number(self.path / ("memory.max" if self.version == 2 else "memory.limit_in_bytes"))
        return value if value is not None and value < NO_LIMIT else None

    @property
    def used_bytes(self) -> int | None:
        """Without the cached files that the kernel gives up before it kills."""
        used = _number(self.path / ("memory.current" if self.version == 2 else "memory.usage_in_bytes"))
        cached = _fields(self.path / "memory.stat")
        name = "inactive_file" if self.version == 2 else "total_inactive_file"
        return None if used is None else max(0, used - cached.get(name, 0))

    @property
    def counters(self) -> dict[Path, dict[str, int]]:
        """What the kernel counts here, by file: `oom_kill` is the kills, v2's local `oom` the times its limit was
        hit."""
        names = ("memory.events", "memory.events.local") if self.version == 2 else ("memory.oom_control",)
        return {path: fields for name in names if (fields := _fields(path := self.path / name))}


def memory_cgroups(pid: int | str = "self", proc: Path = PROC, root: Path = CGROUPS) -> list[Cgroup]:
    """The memory cgroups of a process that can be read, its own first, then those around it. v1 and v2.

    In a container the path that /proc tells may lie outside of what is mounted; what is mounted at the root is then
    the container's own.
    """
    found: dict[Path, Cgroup] = {}
    for line in _text(proc / str(pid) / "cgroup").splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = 1 if controllers else 2
        for base in [root / "memory"] if controllers else [root, root / "unified"]:
            place = base / inside.lstrip("/")
            for folder in (place, *place.parents):
                if not folder.is_relative_to(base):
                    break
                group = Cgroup(folder, version)
                if group.counters or group.limit_bytes is not None:
                    found.setdefault(folder, group)
    return list(found.values())


class OomCounters:
    """The kernel's counts of processes that it killed for lack of memory, as they were when this was made."""

    def __init__(self, pid: int | str = "self", proc: Path = PROC, root: Path = CGROUPS) -> None:
        self._proc = proc
        # A cgroup of a process that has died can still be read, its place in /proc cannot.
        self._cgroups = memory_cgroups(pid, proc, root)
        self._before = self._read()
        self._machine = self._machine_kills()

    def explain(self) -> str | None:
        """Who was killed for lack of memory since, in words with what was read; None if no counter moved.

        The machine-wide count decides only where no cgroup of ours has one: others' cgroups move it too.
        """
        now = self._read()
        moved = {key for key, was in self._before.items() if now.get(key, was) > was}
        counts = [key for key in self._before if key[1] == "oom_kill"]
        if counts:
            # The nearest cgroup alone: those around it count what happens to its neighbours too.
            if counts[0] not in moved:
                return None
            read = f"oom_kill {self._before[counts[0]]} -> {now[counts[0]]} in {counts[0][0]}"
            return f"killed by the kernel for lack of memory ({self._limit(moved)}; {read})"
        count = self._machine_kills()
        if count is None or self._machine is None or count <= self._machine:
            return None
        return (
            "most likely killed by the kernel for lack of memory: it killed on this machine since the run began "
            f"(oom_kill {self._machine} -> {count} in {self._proc / 'vmstat'})"
        )

    def _read(self) -> dict[tuple[Path, str], int]:
        return {
            (path, name): count
            for group in self._cgroups
            for path, fields in group.counters.items()
            for name, count in fields.items()
            if name == "oom_kill" or (name == "oom" and path.name == "memory.events.local")
        }

    def _machine_kills(self) -> int | None:
        return _fields(self._proc / "vmstat").get("oom_kill")

    def _limit(self, moved: set[tuple[Path, str]]) -> str:
        """Whose limit it was: the cgroup's that hit it by its own count; the tightest where none counts that (v1)."""
        limits = {group.path: limit for group in self._cgroups if (limit := group.limit_bytes) is not None}
        counting = {path.parent for path, name in self._before if name == "oom"}
        hit = [limit for path, limit in limits.items() if (path / "memory.events.local", "oom") in moved]
        if hit or (limits and not counting):
            return f"cgroup limit {amount(min(hit or limits.values()))}"
        return "no cgroup limit that shows here was hit: the machine, or a container around this one, ran out"


def shm_warning(
    workers: int,
    prefetch: int,
    batch_bytes: int | None,
    path: str = SHM,
    usage: Callable[[str], tuple[int, int, int]] = shutil.disk_usage,
) -> str | None:
    """What to say before a run whose loader processes hand batches over in shared memory; None if there is room.

    `workers` and `prefetch` (batches ahead for each worker) are those of all ranks of this machine together;
    `batch_bytes` is None where a batch's size is not known: then only a /dev/shm of Docker's default size is told.
    """
    if not workers:
        return None
    way_out = "make it larger (docker run --shm-size=8g), or lower --workers, --prefetch or --micro-batch"
    try:
        total, _, free = usage(path)
    except OSError:
        return f"there is no {path}, through which loader processes hand over batches: {way_out}, or use --workers 0"
    room = f"{path} has {amount(free)} of {amount(total)} free"
    if batch_bytes is None:
        return (
            f"{room}, a container's default, too small for most batches: {way_out}"
            if total <= DOCKER_SHM_BYTES
            else None
        )
    # One more for each worker: the batch that it is putting together.
    wanted = workers * (prefetch + 1) * batch_bytes
    if wanted <= free:
        return None
    return f"{room}, and {workers} worker(s) with {prefetch} batch(es) ahead can fill {amount(wanted)}: {way_out}"


def bus_error(path: str = SHM, usage: Callable[[str], tuple[int, int, int]] = shutil.disk_usage) -> str:
    """What SIGBUS most likely means: memory of `path` was mapped, and when it was written there was none left."""
    try:
        total, _, free = usage(path)
        room = f"{amount(free)} of {amount(total)} free now"
    except OSError:
        room = "there is none"
    return f"bus error: {path} full? ({room}) Make it larger (docker run --shm-size=8g), or use --workers 0"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _fields(path: Path) -> dict[str, int]:
    """The lines `name number` of a file; none where it cannot be read."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
