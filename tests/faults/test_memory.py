"""A rank that runs out of memory says who held what and which micro-batch would fit; a kill by the kernel is told."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
from pathlib import Path
from unittest import mock

import psutil
import pytest
from scalelab.launch.supervision import supervisor
from scalelab.profiles.runfolder import RunFolder

from tests.support.supervised import Timed, mark_fault, pid_of

LARGE = """
    import torch
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(1000, 4000), nn.Linear(4000, 10)
        def forward(self, batch): return self.last(self.first(batch["x"]).relu().square()).square().mean()
    def build_model(): return Net()
    def example_batch(size): return {{"x": torch.randn(size, 1000)}}
"""


def limit_memory(rank: int, planted: int, room: int) -> None:
    """Rank `planted` may take `room` more bytes of address space than it has now."""
    if rank == planted:
        limit = psutil.Process().memory_info().vms + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        mark_fault()


@pytest.mark.fault(43, 44)
def test_a_rank_without_memory_accounts_for_it(tmp_path: Path, timed: Timed) -> None:
    """A real limit on one rank: exit 7 there, the peers' errors folded, a table of holders, a batch that fits."""
    plant = functools.partial(limit_memory, planted=1, room=1 << 30)
    found = timed(tmp_path, model=LARGE, plant=plant, micro_batch=16384, steps=4)
    assert (found.status["exit_code"], found.status["culprit"]["rank"]) == (7, 1), found.status
    assert "micro-batch" in found.status["hint"]
    memory = json.loads((found.folder.path / "errors" / "r001.json").read_text())["memory"]
    assert memory["limit"]["name"].startswith("RLIMIT_AS")
    assert found.status["memory"] == memory
    assert memory["held_bytes"]["parameters"] == 4 * (1000 * 4000 + 4000 + 4000 * 10 + 10)
    assert 0 < memory["largest_micro_batch"] < 16384
    assert found.left == []
    smaller = timed(tmp_path, model=LARGE, plant=plant, micro_batch=memory["largest_micro_batch"], steps=4)
    assert smaller.status["exit_code"] == 0, smaller.status


@pytest.mark.fault(44)
def test_a_kill_by_the_kernel_for_memory_is_not_a_plain_kill(tmp_path: Path, timed: Timed) -> None:
    """A SIGKILL while the kernel's counter of kills for memory moves: exit 7; without that it is exit 5."""

    def kill(folder: RunFolder) -> None:
        os.kill(pid_of(folder, 1), signal.SIGKILL)

    words = "killed by the kernel for lack of memory (cgroup limit 2.0 GiB)"
    with mock.patch.object(supervisor.OomCounters, "explain", return_value=words):
        found = timed(tmp_path, act=kill)
    assert (found.status["exit_code"], found.status["cause"]) == (7, words)
    assert timed(tmp_path, act=kill).status["exit_code"] == 5
