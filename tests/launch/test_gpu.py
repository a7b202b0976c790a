"""On a machine with CUDA: every strategy trains our model over NCCL, and the timeline is the compute stream's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scalelab.launch import strategies
from scalelab.launch.precision import PRECISIONS
from scalelab.profiles.capture.timeline import CudaTimeline

from tests.support.command import scalelab

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", strategies.names())
@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_every_strategy_trains_on_cuda(tmp_path: Path, name: str, precision: str) -> None:
    """One card is enough: losses fall, host-to-device copies are a phase, the allocator's peak is known."""
    code, summary, errors = scalelab(
        "run", "--model=nano", f"--strategy={name}", f"--precision={precision}", "--gpus=1", f"--out={tmp_path}",
        "--steps=20", "--warmup=5", "--json",
    )  # fmt: skip
    assert code == 0, errors
    assert summary["loss"][-1] < summary["loss"][0]
    assert summary["phases"]["h2d"] is not None
    assert summary["memory"]["peak_bytes"] > summary["memory"]["by_kind"]["parameters"]


def test_marks_are_read_when_reached_and_measure_the_stream() -> None:
    """A mark behind a long kernel is not reached at once; between marks lies the kernel's time."""
    timeline = CudaTimeline()
    matrix = torch.randn(8192, 8192, device="cuda")
    begin = timeline.mark()
    for _ in range(20):
        matrix = matrix @ matrix
    end = timeline.mark()
    assert not timeline.reached(end)
    timeline.wait(end)
    assert timeline.reached(end)
    assert timeline.seconds(begin, end) > 0
