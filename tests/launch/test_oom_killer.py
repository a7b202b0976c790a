"""The kernel's kills for lack of memory told apart by its counters, /dev/shm too small, errors that mean it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scalelab.launch.supervision.oom_killer import (
    CGROUPS,
    OomCounters,
    asked_bytes,
    bus_error,
    is_out_of_memory,
    memory_cgroups,
    shm_warning,
)

MIB = 1 << 20


class Machine:
    """A tree of files as the kernel shows them, with one process in cgroup `inside`."""

    def __init__(self, root: Path, line: str) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.write(self.proc / "7" / "cgroup", line)
        self.vmstat(0)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def vmstat(self, kills: int) -> None:
        self.write(self.proc / "vmstat", f"nr_free_pages 5\noom_kill {kills}\n")

    def events(self, place: str, *, kills: int, hits: int = 0, limit: str = "max") -> None:
        folder = self.cgroups / place
        self.write(folder / "memory.events", f"low 0\nmax 9\noom {hits}\noom_kill {kills}\n")
        self.write(folder / "memory.events.local", f"low 0\nmax 9\noom {hits}\noom_kill {kills}\n")
        self.write(folder / "memory.max", f"{limit}\n")

    def control(self, place: str, *, kills: int, limit: int) -> None:
        folder = self.cgroups / "memory" / place
        self.write(folder / "memory.oom_control", f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
        self.write(folder / "memory.limit_in_bytes", f"{limit}\n")

    def counters(self) -> OomCounters:
        return OomCounters(7, self.proc, self.cgroups)


@pytest.mark.fault(44)
def test_a_kill_in_our_cgroup_is_told_with_its_limit(tmp_path: Path) -> None:
    """cgroup v2: the count of our own cgroup moves, and the limit is that of the cgroup that hit its own."""
    machine = Machine(tmp_path, "0::/box/job\n")
    machine.events("box", kills=4, limit=str(2048 * MIB))
    machine.events("box/job", kills=1, limit=str(8192 * MIB))
    before = machine.counters()
    assert before.explain() is None
    machine.events("box", kills=5, hits=1, limit=str(2048 * MIB))
    machine.events("box/job", kills=2, limit=str(8192 * MIB))
    said = before.explain()
    assert said is not None
    assert said.startswith("killed by the kernel for lack of memory (cgroup limit 2.0 GiB; oom_kill 1 -> 2 in ")
    assert str(machine.cgroups / "box/job/memory.events") in said


@pytest.mark.fault(44)
def test_a_neighbours_death_is_not_ours(tmp_path: Path) -> None:
    """Where our own cgroup counts and did not, neither those around it nor the machine's count say anything."""
    machine = Machine(tmp_path, "0::/box/job\n")
    machine.events("box", kills=4)
    machine.events("box/job", kills=1)
    before = machine.counters()
    machine.events("box", kills=5)
    machine.vmstat(1)
    assert before.explain() is None


@pytest.mark.fault(44)
def test_a_machine_out_of_memory_is_no_cgroups_limit(tmp_path: Path) -> None:
    """No cgroup hit its limit: the machine, or what lies around the container, ran out."""
    machine = Machine(tmp_path, "0::/\n")
    machine.events("", kills=0, limit=str(512 * MIB))
    before = machine.counters()
    machine.events("", kills=1, limit=str(512 * MIB))
    assert "no cgroup limit that shows here was hit" in str(before.explain())


@pytest.mark.fault(44)
def test_cgroup_v1_counts_in_another_file(tmp_path: Path) -> None:
    """v1, seen from a container whose own path is not mounted: the root of the mount is its cgroup."""
    machine = Machine(tmp_path, "9:name=systemd:/\n4:memory:/docker/0123\n0::/\n")
    machine.control("", kills=0, limit=512 * MIB)
    before = machine.counters()
    assert [group.version for group in memory_cgroups(7, machine.proc, machine.cgroups)] == [1]
    machine.control("", kills=1, limit=512 * MIB)
    assert "cgroup limit 512.0 MiB; oom_kill 0 -> 1" in str(before.explain())
    machine.control("", kills=1, limit=9223372036854771712)
    assert "no cgroup limit" in str(before.explain())


@pytest.mark.fault(44)
def test_without_cgroups_the_machines_count_is_likely_ours(tmp_path: Path) -> None:
    """/proc/vmstat decides where no cgroup counts; a machine that shows nothing says nothing."""
    machine = Machine(tmp_path, "0::/\n")
    before = machine.counters()
    assert before.explain() is None
    machine.vmstat(2)
    said = str(before.explain())
    assert said.startswith("most likely killed by the kernel for lack of memory")
    assert "oom_kill 0 -> 2" in said
    nothing = OomCounters(8, tmp_path / "none", tmp_path / "none")
    assert nothing.explain() is None


@pytest.fixture
def limited() -> Iterator[Path]:
    """A real memory cgroup of 64 MiB, its folder; the test is skipped by name where none can be made."""
    own = next(iter(memory_cgroups()), None)
    parent = own.path if own is not None else CGROUPS
    folder = parent / f"scalelab-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made in {parent}: {error.strerror}")
    try:
        version = 1 if (folder / "memory.limit_in_bytes").exists() else 2
        (folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(str(64 * MIB))
        yield folder
    except OSError as error:
        pytest.skip(f"{folder} takes no limit: {error.strerror}")
    finally:
        folder.rmdir()


GREEDY = """
import sys
sys.stdout.write("up\\n"); sys.stdout.flush(); sys.stdin.readline()
held = bytearray(256 << 20) if sys.argv[1] == "much" else sys.stdin.readline()
"""


@pytest.mark.fault(44)
@pytest.mark.parametrize("how", ["much", "killed"])
def test_the_kernels_kill_is_told_from_anyones(limited: Path, how: str) -> None:
    """Two processes in one real cgroup end by SIGKILL: one outgrew the limit, the other was killed by hand."""
    process = subprocess.Popen(
        [sys.executable, "-c", GREEDY, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdout.readline()
        (limited / "cgroup.procs").write_text(str(process.pid))
        before = OomCounters(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        if how == "killed":
            process.kill()
        assert process.wait(timeout=30) == -signal.SIGKILL
    said = before.explain()
    if how == "killed":
        assert said is None
    else:
        assert said is not None
        assert "killed by the kernel for lack of memory (cgroup limit 64.0 MiB; oom_kill 0 -> 1" in said


@pytest.mark.fault(45)
def test_a_small_shm_is_told_before_the_run() -> None:
    """What all workers can have ahead must fit in what is free; without a size only a container's default is told."""

    def usage(_: str) -> tuple[int, int, int]:
        return 64 * MIB, 4 * MIB, 60 * MIB

    said = shm_warning(4, 2, 6 * MIB, usage=usage)
    assert said is not None
    assert "60.0 MiB of 64.0 MiB free" in said
    assert "72.0 MiB" in said
    assert "--shm-size" in said
    assert shm_warning(4, 2, 5 * MIB, usage=usage) is None
    assert shm_warning(0, 2, 6 * MIB, usage=usage) is None
    assert "container's default" in str(shm_warning(4, 2, None, usage=usage))
    assert shm_warning(4, 2, None, usage=lambda _: (8 << 30, 0, 8 << 30)) is None


@pytest.mark.fault(45)
def test_no_shm_at_all_is_told(tmp_path: Path) -> None:
    """A path that is not there, for the warning and for the bus error."""
    gone = str(tmp_path / "shm")
    assert "--workers 0" in str(shm_warning(1, 1, MIB, path=gone))
    assert bus_error(gone).startswith(f"bus error: {gone} full?")
    assert "free now" in bus_error(str(tmp_path))


@pytest.mark.fault(43)
def test_every_form_of_a_failed_allocation_is_recognised() -> None:
    """torch on host and device, numpy, Python, fork; bare, as a cause, as a context, in a group."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**15)
    host_error = refused.value
    with pytest.raises(MemoryError) as caught:
        np.empty(10**15)
    numpy_error = caught.value
    forms: list[BaseException] = [
        host_error,
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
        RuntimeError("std::bad_alloc"),
        MemoryError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        numpy_error,
    ]
    for form in forms:
        wrapped, handling = ValueError("batch 3 failed"), KeyError("x")
        wrapped.__cause__, handling.__context__ = form, form
        for error in (form, wrapped, handling, BaseExceptionGroup("several", [ValueError(), form])):
            assert is_out_of_memory(error), error
    assert [asked_bytes(form) for form in forms[:2]] == [4 * 10**15, 5 << 29]
    assert asked_bytes(numpy_error) == pytest.approx(8 * 10**15, rel=1e-2)


def test_what_only_mentions_memory_is_not_taken_for_it() -> None:
    """A user's own words, classes of other libraries of that name, and chains that were cut."""

    class OutOfMemoryError(RuntimeError):
        pass

    cut = ValueError("no")
    cut.__context__, cut.__suppress_context__ = MemoryError(), True
    for error in (
        RuntimeError("my cache says: out of memory"),
        RuntimeError("see DefaultCPUAllocator: can't allocate memory"),
        ValueError("CUDA out of memory. Tried to allocate 2 GiB"),
        OutOfMemoryError("mine"),
        OSError(28, "No space left on device"),
        cut,
    ):
        assert not is_out_of_memory(error), error
        assert asked_bytes(error) is None
