"""One run on two hosts that share neither a disk nor a name: network namespaces joined by a wire."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from scalelab.launch.supervision.sighting import see

from tests.support.hosts import ADDRESSES, cut, on, two_hosts
from tests.support.supervised import MODEL

PORT = 29417
pytestmark = pytest.mark.slow


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    with two_hosts() as names:
        yield names


class Pair:
    """The same command on both hosts, each with a folder of its own."""

    def __init__(self, place: Path, names: tuple[str, str], seconds: float = 0.02) -> None:
        self.place = place
        self.names = names
        self.processes: list[subprocess.Popen[str]] = []
        (place / "micro.py").write_text(textwrap.dedent(MODEL).format(seconds=seconds))

    def start(self, node: int, *options: str) -> None:
        command = [
            sys.executable, "-m", "scalelab", "run", f"--model={self.place / 'micro.py'}", "--gpus=2", "--nodes=2",
            f"--node-rank={node}", f"--rendezvous={ADDRESSES[0]}:{PORT}", f"--out={self.out(node)}", "--json",
            "--warmup=1", *options,
        ]  # fmt: skip
        self.processes.append(
            subprocess.Popen(on(self.names[node], command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )

    def out(self, node: int) -> Path:
        return self.place / f"host{node}"

    def folder(self, node: int) -> Path:
        return (self.out(node) / "latest").resolve()

    def ends(self) -> list[tuple[int, dict, str]]:
        """Exit code, JSON and stderr of each host's command."""
        found = []
        for process in self.processes:
            out, errors = process.communicate(timeout=120)
            found.append((process.returncode, json.loads(out) if out.strip() else {}, errors))
        return found

    def wait_for_step(self, step: int) -> None:
        while True:
            assert all(process.poll() is None for process in self.processes)
            seen = [see(self.folder(rank // 2), rank) for rank in range(4)]
            if all(item.step is not None and item.step >= step for item in seen):
                return
            time.sleep(0.05)

    def status(self, node: int) -> dict:
        return orjson.loads((self.folder(node) / "status.json").read_bytes())


@pytest.mark.parametrize("launcher", ["fork", "torchrun"])
def test_two_hosts_are_one_run(tmp_path: Path, hosts: tuple[str, str], launcher: str) -> None:
    """Host 0's folder holds every rank's records, under the one id that both hosts know."""
    pair = Pair(tmp_path, hosts)
    for node in (1, 0):
        pair.start(node, "--steps=6", f"--launcher={launcher}")
    ends = pair.ends()
    assert [code for code, _, _ in ends] == [0, 0], ends
    summary = ends[1][1]
    assert (summary["world_size"], summary["nodes"], summary["steps"]["measured"]) == (4, 2, 6)
    assert pair.folder(0).name == pair.folder(1).name == summary["run_id"]
    written = [sorted(path.name for path in (pair.folder(node) / "ranks").iterdir()) for node in (0, 1)]
    assert written == [[f"r00{rank}.jsonl" for rank in ranks] for ranks in (range(4), (2, 3))]
    assert pair.status(0) == pair.status(1)
    assert summary["loss"][-1] < summary["loss"][0]


@pytest.mark.fault(27)
def test_a_host_that_never_comes_is_named(tmp_path: Path, hosts: tuple[str, str]) -> None:
    """Host 0 gives up after the time given and lists the ranks that are missing; host 1 names host 0."""
    pair = Pair(tmp_path, hosts)
    pair.start(0, "--rendezvous-timeout=1")
    ((code, failure, errors),) = pair.ends()
    assert (code, failure["error"]["exit_code"]) == (3, 3)
    assert "host 1 (ranks 2, 3) did not come within 1 s" in errors
    assert pair.status(0)["exit_code"] == 3
    alone = Pair(tmp_path, hosts)
    alone.start(1, "--rendezvous-timeout=1")
    ((code, _, errors),) = alone.ends()
    assert (code, "host 0 (ranks 0 to 1) was not at" in errors) == (3, True), errors


def test_hosts_that_were_asked_for_different_runs_are_refused(tmp_path: Path, hosts: tuple[str, str]) -> None:
    """An option that differs is named on both hosts, and nothing starts."""
    pair = Pair(tmp_path, hosts)
    pair.start(0, "--steps=6")
    pair.start(1, "--steps=7")
    for code, _, errors in pair.ends():
        assert (code, "--steps is 6 on host 0 but 7 on host 1" in errors) == (2, True), errors


@pytest.mark.fault(24)
def test_a_cut_wire_ends_with_the_missing_ranks(tmp_path: Path, hosts: tuple[str, str]) -> None:
    """A wire that goes silent in the middle: both hosts end, each naming the other's ranks."""
    pair = Pair(tmp_path, hosts)
    for node in (0, 1):
        pair.start(node, "--steps=100000")
    pair.wait_for_step(5)
    cut(hosts[0], 0)
    ends = pair.ends()
    assert [code for code, _, _ in ends] == [5, 5], ends
    assert "ranks 2, 3) has not been heard of for" in ends[0][2]
    assert "ranks 0, 1) has not been heard of for" in ends[1][2]
    assert pair.status(0)["culprit"]["rank"] == 2


@pytest.mark.fault(3)
def test_a_rank_killed_on_the_other_host_is_named_on_both(tmp_path: Path, hosts: tuple[str, str]) -> None:
    """kill -9 of rank 3 on host 1: both hosts tell the same."""
    pair = Pair(tmp_path, hosts)
    for node in (0, 1):
        pair.start(node, "--steps=100000")
    pair.wait_for_step(5)
    pid = see(pair.folder(1), 3).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    ends = pair.ends()
    assert [code for code, _, _ in ends] == [5, 5], ends
    assert pair.status(0) == pair.status(1)
    assert (pair.status(0)["culprit"]["rank"], pair.status(0)["cause"]) == (3, "ended by SIGKILL")
    assert (pair.folder(0) / "ranks" / "r003.jsonl").read_bytes().count(b"\n") > 4


def test_ctrl_c_on_one_host_stops_both(tmp_path: Path, hosts: tuple[str, str]) -> None:
    """All ranks of all hosts stop after the same step."""
    pair = Pair(tmp_path, hosts)
    for node in (0, 1):
        pair.start(node, "--steps=100000")
    pair.wait_for_step(5)
    pair.processes[1].send_signal(signal.SIGINT)
    ends = pair.ends()
    assert [code for code, _, _ in ends] == [130, 130], ends
    counts = {(pair.folder(0) / "ranks" / f"r00{rank}.jsonl").read_bytes().count(b'"kind":"step"') for rank in range(4)}
    assert len(counts) == 1
