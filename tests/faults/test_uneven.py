"""Ranks that differ in speed or in data, clocks that jump, connections that break, ports that are taken."""

from __future__ import annotations

import functools
import os
import socket
import stat
import time
from pathlib import Path

import pytest
from scalelab.launch.supervision.pulse import Pulse
from scalelab.profiles.records import StepRecord

from tests.faults.test_command import start
from tests.support.supervised import MODEL, Timed, mark_fault, run_supervised

UNEVEN = (
    MODEL
    + """
    def build_loader(rank, world_size, micro_batch, seed):
        return [example_batch(micro_batch) for _ in range(1 + 2 * rank)]
"""
)


@pytest.mark.fault(23)
def test_loaders_of_different_length_never_hang(tmp_path: Path, timed: Timed) -> None:
    """A loader that ends is begun again, on each rank for itself: all ranks do the steps that were asked for."""
    found = timed(tmp_path, model=UNEVEN, gpus=3, steps=11)
    assert found.status["exit_code"] == 0
    assert {found.steps(rank) for rank in range(3)} == {12}


@pytest.mark.fault(25)
def test_a_slow_rank_is_no_fault(tmp_path: Path, timed: Timed) -> None:
    """One rank three times slower: the run ends well, and its records show which rank took the time."""
    slow = MODEL.replace("time.sleep({seconds})", 'time.sleep(0.03 if os.environ["RANK"] == "1" else 0.01)')
    found = timed(tmp_path, model=slow, steps=10)
    assert found.status["exit_code"] == 0
    ranks = [found.folder.records(rank)[0] for rank in (0, 1)]
    forward = [[each.phases["forward"] for each in rank if isinstance(each, StepRecord)] for rank in ranks]
    assert sorted(forward[1])[5] - sorted(forward[0])[5] > 0.01


def break_connections(rank: int, planted: int) -> None:
    """Break every connection of rank `planted` at its fourth forward, but not the process."""
    if rank != planted:
        return
    at = Pulse.at

    def breaking(self: Pulse, step: int | None, phase: str | None) -> None:
        at(self, step, phase)
        if (step, phase) == (3, "forward"):
            mark_fault()
            for name in os.listdir("/proc/self/fd"):
                try:
                    if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                        connection = socket.socket(fileno=os.dup(int(name)))
                        connection.getpeername()
                        connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    Pulse.at = breaking


@pytest.mark.fault(24)
def test_a_broken_connection_names_ranks_and_collective(tmp_path: Path, timed: Timed) -> None:
    """Connections that break while all processes live: exit 5, the ranks at both ends, the collective."""
    found = timed(tmp_path, plant=functools.partial(break_connections, planted=1))
    assert found.status["exit_code"] == 5, found.status
    assert "the connection between ranks 0, 1 broke in collective" in found.status["cause"], found.status
    assert "all_reduce of" in found.status["cause"]
    assert found.left == []


def jump(rank: int) -> None:
    """The wall clock jumps by an hour, forth and back, at every look."""
    now, looks = time.time, iter(range(10**9))
    time.time = lambda: now() + (3600 if next(looks) % 2 else -3600)


@pytest.mark.fault(51)
def test_a_wall_clock_that_jumps_changes_no_duration(tmp_path: Path, timed: Timed) -> None:
    """Durations and the watch for hangs are of monotonic clocks."""
    found = timed(tmp_path, plant=jump, steps=10)
    assert found.status["exit_code"] == 0
    records = [record for rank in (0, 1) for record in found.folder.records(rank)[0] if isinstance(record, StepRecord)]
    assert all(0.009 < record.seconds < 60 for record in records)
    assert all(sum(record.phases.values()) <= record.seconds for record in records)


@pytest.mark.fault(26)
def test_runs_at_once_do_not_race_for_a_port(tmp_path: Path) -> None:
    """Ports are picked by the kernel, whatever is taken."""
    with socket.create_server(("127.0.0.1", 29500)) if _is_free(29500) else socket.socket():
        assert run_supervised(tmp_path, steps=3).status["exit_code"] == 0


@pytest.mark.fault(26)
def test_a_rendezvous_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """Of several hosts the user picks the port: one that is taken is exit 3, before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = start(tmp_path, "--nodes=2", f"--rendezvous=127.0.0.1:{port}")
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, "the port is taken" in errors) == (3, True), errors


@pytest.mark.fault(27)
def test_a_host_that_does_not_come_is_named(tmp_path: Path) -> None:
    """Host 0 waits as long as it was told, then lists the ranks that are missing; so does any other host."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ["--nodes=3", f"--rendezvous=127.0.0.1:{port}", "--rendezvous-timeout=0.5"]
    hosts = [start(tmp_path, *options, f"--node-rank={node}") for node in (0, 2)]
    errors = [host.communicate(timeout=60)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [3, 3], errors
    assert "host 1 (ranks 2, 3) did not come within 0.5 s" in errors[0] or "hosts 1, 2 (ranks 2, 3, 4, 5)" in errors[0]


@pytest.mark.fault(27)
def test_strangers_at_the_rendezvous_hold_nobody_up(tmp_path: Path) -> None:
    """Somebody who says nothing, nonsense, or leaves at once: the hosts still meet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ["--nodes=2", "--gpus=1", f"--rendezvous=127.0.0.1:{port}", "--steps=2"]
    first = start(tmp_path / "a", *options, "--node-rank=0")
    strangers = []
    while len(strangers) < 6:
        try:
            strangers.append(socket.create_connection(("127.0.0.1", port), timeout=1))
        except OSError:
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    strangers[1].sendall(b"\xff" * 100)
    strangers[2].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    strangers[2].close()
    second = start(tmp_path / "b", *options, "--node-rank=1")
    errors = [host.communicate(timeout=100)[1] for host in (first, second)]
    for stranger in strangers:
        stranger.close()
    assert [first.returncode, second.returncode] == [0, 0], errors


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
