"""Disks that are full, in the middle of a run: what was there stays, and the run says what it is short of."""

from __future__ import annotations

import functools
import resource
from pathlib import Path

import pytest
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import EventRecord

from tests.support.supervised import Timed


def limit_files(rank: int, planted: int, size: int) -> None:
    """No file of rank `planted` grows beyond `size` bytes."""
    if rank == planted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.fault(28)
def test_a_disk_that_fills_with_records_ends_the_run(tmp_path: Path, timed: Timed) -> None:
    """Records that find no more room: exit 3 with the rank and the bytes; what was written before is readable."""
    found = timed(tmp_path, plant=functools.partial(limit_files, planted=1, size=7000), steps=1000)
    assert (found.status["exit_code"], found.status["culprit"]["rank"]) == (3, 1)
    assert "r001.jsonl" in found.status["cause"]
    assert "free" in found.status["cause"]
    assert found.steps(1) > 5
    assert found.left == []


WIDE = """
    import torch
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 40000)
        def forward(self, batch): return self.layer(batch["x"]).square().mean()
    def build_model(): return Net()
    def example_batch(size): return {{"x": torch.randn(size, 3)}}
"""


@pytest.mark.fault(29)
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_a_checkpoint_without_room_does_not_cost_the_run(tmp_path: Path, timed: Timed, strategy: str) -> None:
    """Training goes on to its end; exit 10 says that a checkpoint is missing; no half of one is to be seen."""
    plant = functools.partial(limit_files, planted=1, size=200_000)
    found = timed(tmp_path, model=WIDE, plant=plant, strategy=strategy, steps=4, save_every=3)
    assert (found.status["exit_code"], found.status["state"]) == (10, "finished"), found.status
    assert "step-" in found.status["cause"]
    assert found.steps(0) == found.steps(1) == 5
    assert list((found.folder.path / "checkpoints").glob("step-*")) == []
    # Beside them there may be a flush, if the machine takes half a second for the steps.
    events = [record for record in found.folder.records(0)[0] if isinstance(record, EventRecord)]
    saves = [event for event in events if event.event == "checkpoint"]
    assert len(saves) == 2
    assert all("failed" in event.values for event in saves)
    (row,) = (row for row in summarise(load_run(found.folder))["events"] if row["kind"] == "checkpoint")
    assert (row["count"], row["failed"]) == (2, 2)
