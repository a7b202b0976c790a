"""What the machine is at while a run lasts: cores that the run and others keep busy, and how near memory is to its end.
Linux; no torch."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..used import HostRecord

PROC = Path("/proc")
# A reading takes 0.2 ms on a small machine; over seconds, its counters of 10 ms are fine enough.
PERIOD_SECONDS = 0.5
_TICK = os.sysconf("SC_CLK_TCK")


class HostWatch:
    """Reads this host. `memory` gives the bytes used and the limit of the tightest bound around the run, None where
    there is none but the machine's own."""

    def __init__(
        self,
        memory: Callable[[], tuple[int, int] | None] = lambda: None,
        proc: Path = PROC,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._memory = memory
        self._proc = proc
        self._clock_ns = clock_ns
        # Seconds on cores and major faults by process.
        self._gone: dict[int, tuple[float, int]] = {}
        self._seen: dict[int, tuple[float, int]] = {}

    def read(self, pids: Iterable[int]) -> HostRecord | None:
        """A reading, with `pids` and their descendants as the run's processes. None where this is no Linux."""
        try:
            total = self._stat()
        except (OSError, ValueError, IndexError):
            return None
        known = self._meminfo()
        used, limit = self._memory() or _whole(known)
        own, faults = self._own(pids)
        user, nice, system, _, _, irq, softirq, steal = total[:8]
        return HostRecord(
            at_ns=self._clock_ns(),
            cores=os.cpu_count() or 1,
            busy_core_seconds=(user + nice + system + irq + softirq) / _TICK,
            own_core_seconds=own,
            stolen_core_seconds=steal / _TICK,
            memory_used_bytes=used,
            memory_limit_bytes=limit,
            memory_stall_seconds=self._stalled(),
            swap_used_bytes=known["SwapTotal"] - known["SwapFree"] if {"SwapTotal", "SwapFree"} <= set(known) else None,
            major_faults=faults,
        )

    def _stat(self) -> list[int]:
        with open(self._proc / "stat", "rb") as file:
            return [int(word) for word in file.readline().split()[1:9]]

    def _own(self, pids: Iterable[int]) -> tuple[float, int]:
        """Seconds on cores and major faults of the processes and all that came from them, also what has ended since."""
        waiting, now = list(pids), dict[int, tuple[float, int]]()
        while waiting:
            pid = waiting.pop()
            fields = self._fields(pid)
            if pid in now or fields is None:
                continue
            # Behind the name: state, ppid, …; majflt is the 12th field of proc(5), utime and stime the 14th and 15th.
            now[pid] = (int(fields[11]) + int(fields[12])) / _TICK, int(fields[9])
            waiting += self._children(pid)
        self._gone |= {pid: told for pid, told in self._seen.items() if pid not in now}
        self._seen = now
        all_of_them = [*now.values(), *self._gone.values()]
        return sum(seconds for seconds, _ in all_of_them), sum(faults for _, faults in all_of_them)

    def _fields(self, pid: int) -> Sequence[bytes] | None:
        try:
            return (self._proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None

    def _children(self, pid: int) -> list[int]:
        """Those of every thread: a loader that a thread draws from has its processes from there."""
        found: list[int] = []
        # A process or a thread may end meanwhile.
        with contextlib.suppress(OSError):
            for thread in os.listdir(self._proc / str(pid) / "task"):
                with contextlib.suppress(OSError):
                    children = self._proc / str(pid) / "task" / thread / "children"
                    found += [int(word) for word in children.read_bytes().split()]
        return found

    def _meminfo(self) -> dict[str, int]:
        found = {}
        try:
            for line in (self._proc / "meminfo").read_text().splitlines():
                name, _, rest = line.partition(":")
                found[name] = int(rest.split()[0]) << 10
        except (OSError, ValueError, IndexError):
            return found
        return found

    def _stalled(self) -> float | None:
        """Seconds in which some task waited for memory, since the system started."""
        try:
            first = (self._proc / "pressure" / "memory").read_text().splitlines()[0]
            return int(first.rpartition("total=")[2]) * 1e-6
        except (OSError, ValueError, IndexError):
            return None


def _whole(known: dict[str, int]) -> tuple[int | None, int | None]:
    """Bytes used of the machine's memory, and all of it."""
    total, available = known.get("MemTotal"), known.get("MemAvailable")
    return (None, total) if total is None or available is None else (total - available, total)
