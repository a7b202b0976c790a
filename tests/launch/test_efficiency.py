"""Operations of real runs: what their batches were, with nothing of the training touched; or why they are not known."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scalelab.launch import efficiency
from scalelab.launch.build import build
from scalelab.launch.setting import Setting
from scalelab.models.contract import load_model
from scalelab.profiles.analysis.summary import write_summary
from scalelab.profiles.capture.batches import BatchTally
from scalelab.profiles.records import EndRecord, Role
from scalelab.profiles.used import FlopsRecord

from tests.support.supervised import run_supervised

MODEL = """
    import torch
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Linear(3, 4)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        def forward(self, batch):
            {body}
            hidden = self.words(batch["x"])
            for block in self.blocks:
                hidden = block(hidden)
            return hidden.square().mean()
    def build_model(): return Net()
    def blocks(model): return list(model.blocks)
    def example_batch(size): return {{"x": torch.randn(size, 6, 3), "mask": torch.arange(6).expand(size, 6) < 4}}
"""
PADDED = """
    def padded(): return {"mask": ("x", "mask")}
"""


def model(body: str = "pass", *, padded: bool = False) -> str:
    # run_supervised formats it once more, with the seconds that this model does not wait.
    text = MODEL.format(body=body) + (PADDED if padded else "")
    return text.replace("{", "{{").replace("}", "}}")


def flops(tokens: int) -> dict[str, int]:
    """Of a sample of that many tokens; the input of the first layer needs no gradient."""
    return {"words": 2 * 2 * tokens * 3 * 4, "blocks": 2 * 3 * 2 * tokens * 4 * 4, "unattributed": 0}


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_run_counts_what_its_samples_took(tmp_path: Path, checkpointing: str) -> None:
    """To the operation, by direct child of the model, over ranks and accumulation; two thirds of its rows are real."""
    outcome = run_supervised(
        tmp_path, model=model(padded=True), grad_accumulation=2, micro_batch=3, steps=4, checkpointing=checkpointing
    )
    assert outcome.status["exit_code"] == 0
    summary = write_summary(outcome.folder)
    assert summary["model"]["flops_by_branch"] == flops(6)
    assert summary["model"]["flops_per_sample"] == sum(flops(6).values())
    assert summary["model"]["useful_flops_per_sample"] == sum(flops(4).values())
    assert summary["model"]["padding"]["mask"] == {"real": 4.0, "there": 6.0, "share_real": pytest.approx(2 / 3)}
    assert summary["utilization"]["useful_fraction"] == pytest.approx(2 / 3)
    again = 2 * 2 * 6 * 4 * 4 if checkpointing == "full" else 0
    assert summary["model"]["recomputed_flops_per_sample"] == again
    assert summary["model"]["uncounted_operators"]["tanh"] == 2 * (2 if checkpointing == "full" else 1)
    records = outcome.folder.records(0)[0]
    assert sum(
        row.micro_batches for each in records if isinstance(each, FlopsRecord) for row in each.counted or ()
    ) == (2 * 4 * 2)
    assert isinstance(records[-1], EndRecord)


def test_a_model_that_reads_its_values_trains_all_the_same(tmp_path: Path) -> None:
    """What cannot be followed without data is null with the reason, and the run is as good as any."""
    outcome = run_supervised(tmp_path, model=model("assert batch['x'].sum().item() < 1e9"), steps=3)
    assert outcome.status["exit_code"] == 0
    summary = write_summary(outcome.folder)
    assert summary["model"]["flops_per_sample"] is None
    assert "cannot be followed on fake tensors" in summary["reasons"]["model.flops_per_sample"]
    assert "cannot be followed on fake tensors" in summary["reasons"]["utilization.mfu"]


def test_without_masks_the_useful_share_is_not_known(tmp_path: Path) -> None:
    """The reason names what a model's file can say."""
    outcome = run_supervised(tmp_path, model=model(), steps=3)
    summary = write_summary(outcome.folder)
    assert summary["model"]["flops_per_sample"] == sum(flops(6).values())
    assert summary["utilization"]["useful_fraction"] is None
    assert "padded()" in summary["reasons"]["model.useful_flops_per_sample"]


def generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-params"])
@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_counting_leaves_all_as_it_was(precision: str, checkpointing: str) -> None:
    """Global generators, the model that trained, its gradients and hooks; and it counts the same in every precision."""
    source = load_model("nano", {})
    setting = Setting(world_size=1, device="cpu", precision=precision, checkpointing=checkpointing, micro_batch=2)  # type: ignore
    trained, _ = build(source, setting, seed=1)
    before = [parameter.clone() for parameter in trained.parameters()]
    noted = BatchTally(tuple(source.padded() or ()))
    noted.note(source.example_batch(2), "measured")
    for draw in (random.random, np.random.rand, lambda: torch.rand(1)):
        draw()
    states = generators()
    found = efficiency.count(noted, source, setting, 3, None, leads=True)
    assert generators() == states
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, trained.parameters(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trained.modules())
    plain = Setting(world_size=1, device="cpu", micro_batch=2)
    same = efficiency.count(noted, source, plain, 3, None, leads=True)
    assert found is not None
    assert same is not None
    assert found.counted is not None
    assert same.counted is not None
    assert found.counted[0].by_branch == same.counted[0].by_branch
    assert (found.counted[0].recomputed > 0) == (checkpointing == "full")
    assert same.counted[0].recomputed == 0


def test_more_shapes_than_are_counted_is_a_reason() -> None:
    source, setting = load_model("nano", {}), Setting(world_size=1, device="cpu")
    noted = BatchTally(())
    for size in range(efficiency.MOST_SHAPES + 1):
        noted.note({"x": torch.zeros(size + 1)}, "measured")
    found = efficiency.count(noted, source, setting, 0, None, leads=True)
    assert found is not None
    assert found.counted is None
    assert "different shapes" in found.reasons["counted"]


def test_only_measured_micro_batches_are_noted() -> None:
    """Those of warm-up and of the tail are not; masks are read by row, shapes told apart."""
    noted = BatchTally(masks=("mask",))
    roles: tuple[Role, ...] = ("warmup", "warmup", "measured", "measured", "measured", "counterfactual")
    for length, role in zip((9, 9, 3, 4, 3, 9), roles, strict=True):
        noted.note({"mask": torch.arange(length).expand(2, length) > 0, "name": "x"}, role)
    assert noted.record().real == {"mask": [2 * 2, 2 * 3, 2 * 2]}
    assert sorted(noted.seen.shapes.values()) == [1, 2]
    assert noted.seen.filled == {"mask": (2 * (2 + 3 + 2), 6, 2 * (3 + 4 + 3))}
    batch = noted.like((((2, 3), torch.bool),), "cpu", {"mask": 1})
    assert (tuple(batch["mask"].shape), batch["name"]) == ((2, 1), "x")


@pytest.mark.parametrize(
    "batch",
    [
        {"mask": torch.ones(3)},
        {"mask": torch.ones(2, 3, dtype=torch.bfloat16)},
        {"mask": torch.ones(2, 3, requires_grad=True)},
        {"other": torch.ones(2, 3)},
        [torch.ones(2, 3)],
    ],
)
def test_a_mask_that_cannot_be_read_is_no_mask(batch: Any) -> None:
    noted = BatchTally(masks=("mask",))
    noted.note(batch, "measured")
    assert noted.seen.filled is None


def test_ranks_sum_what_they_saw() -> None:
    """Shapes and masks of two ranks; one whose masks are unknown makes them unknown for all."""
    one, other = (BatchTally(("mask",)) for _ in range(2))
    one.note({"mask": torch.ones(2, 3)}, "measured")
    other.note({"mask": torch.zeros(2, 3)}, "measured")
    one.seen.add(other.seen)
    assert list(one.seen.shapes.values()) == [2]
    assert one.seen.filled == {"mask": (6, 4, 12)}
    other.seen.filled = None
    one.seen.add(other.seen)
    assert one.seen.filled is None
