"""What is computed again in backward is timed, under a clock that passes only within the blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from scalelab.launch import recompute
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.records import Record, StepRecord
from torch import nn

from tests.profiles.test_probe import Clock, Step


class Slow(nn.Module):
    """A block that takes a second each time that it computes."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.clock = clock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock.advance(1.0)
        return self.layer(x).relu()


@pytest.fixture(autouse=True)
def nobody_listens() -> Iterator[None]:
    yield
    recompute.timed_by(None)


@pytest.mark.parametrize("how", ["full", "selective"])
@pytest.mark.parametrize("timed", [True, False])
def test_recomputation_is_a_part_of_backward(how: str, timed: bool) -> None:
    """Two blocks, two micro-batches: four seconds of backward; with the counterfactual none."""
    clock, records = Clock(), list[Record]()
    model = nn.Sequential(Slow(clock), Slow(clock))
    recompute.checkpoint_blocks(list(model.children()), how)
    probe = Probe(lambda *written: records.extend(written), HostTimeline(clock), times_recompute=timed)
    recompute.timed_by(probe.recomputing)

    def one(index: int) -> None:
        with probe.step(Step(index)):
            for _ in range(2):
                with probe.phase("forward"):
                    loss = model(torch.ones(2, 3)).sum()
                with probe.phase("backward"):
                    loss.backward()

    one(0)
    with recompute.nothing_recomputed():
        one(1)
    probe.close()
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert [step.recompute_seconds for step in steps] == ([4.0, 0.0] if timed else [None, None])
    assert [step.phases for step in steps] == [{"forward": 4.0, "backward": 4.0}, {"forward": 4.0, "backward": 0.0}]
