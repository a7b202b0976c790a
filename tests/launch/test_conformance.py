"""Every strategy on disk trains the same thing as one process, and holds the bytes its law states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scalelab.launch import strategies
from scalelab.launch.loop import train
from scalelab.launch.precision import PRECISIONS, wrap_forward
from scalelab.launch.ranks import Rank
from scalelab.launch.schedule import Step
from scalelab.launch.strategies._contract import Setting
from scalelab.profiles.capture.memory import model_state
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.records import MemoryRecord, Record, StepRecord

from tests.support import micro_model
from tests.support.ranks import run_ranks

STEPS = 6
MICRO_BATCH = 3
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
CASES = [
    Setting(
        world_size=2,
        device="cpu",
        precision=precision,
        optimizer=optimizer,
        micro_batch=MICRO_BATCH,
        accumulation=accumulation,
        lr=1e-3,
    )
    for precision in PRECISIONS
    for optimizer in ("adamw", "sgd")
    for accumulation in (1, 2)
]
CASES += [replace(case, clip_norm=0.1) for case in CASES if case.precision == "fp32" and case.accumulation == 1]
WIDTHS = (13, 31, 50)


def model_of(setting: Setting, width: int = 13) -> torch.nn.Module:
    torch.manual_seed(0)
    model = micro_model.build_model(width)
    wrap_forward(model, "micro", PRECISIONS[setting.precision], "cpu")
    return model


def batches_of(rank: int, setting: Setting) -> list[Any]:
    generator = torch.Generator().manual_seed(1000 + rank)
    return [
        {"x": (x := torch.randn(MICRO_BATCH, 7, generator=generator)), "y": x.sum(-1).sin() + rank}
        for _ in range(STEPS * setting.accumulation)
    ]


def train_on_rank(rank: Rank, name: str, cases: list[Setting]) -> list[list[StepRecord]]:
    """The step records of `cases`, one after the other in the same processes."""
    untouched = torch.nn.functional.linear
    found = []
    for setting in cases:
        records: list[Record] = []
        run = strategies.load(name).shard(model_of(setting), setting)
        probe = Probe(records.append, HostTimeline(), record_grad_norm=True)
        steps = [Step(index=i, role="measured", lr=setting.lr, samples=MICRO_BATCH) for i in range(STEPS)]
        train(run, iter(batches_of(rank.rank, setting)), steps, probe, lambda batch: batch)
        probe.close()
        found.append([record for record in records if isinstance(record, StepRecord)])
        assert torch.nn.functional.linear is untouched, f"{name} replaced torch.nn.functional.linear"
    return found


def reference(setting: Setting) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of one process that runs all ranks' micro-batches in rank order and averages."""
    model = model_of(setting)
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[setting.optimizer]
    optimizer = kind(model.parameters(), lr=setting.lr, **setting.hyperparameters)
    feeds = [batches_of(rank, setting) for rank in range(setting.world_size)]
    losses, norms = [], []
    for step in range(STEPS):
        parts = [feed[step * setting.accumulation + micro] for feed in feeds for micro in range(setting.accumulation)]
        total = 0.0
        for batch in parts:
            loss = model(batch)
            (loss / len(parts)).backward()
            total += float(loss.detach()) / len(parts)
        losses.append(total)
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        norms.append(float(norm))
        if setting.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), setting.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


def combined(per_rank: list[list[StepRecord]]) -> tuple[list[float], list[float]]:
    """Losses and gradient norms over ranks, as analysis computes them."""
    losses, norms = [], []
    for records in zip(*per_rank, strict=True):
        every = [loss for record in records for loss in record.losses]
        losses.append(sum(loss or 0.0 for loss in every) / len(every))
        norms.append(sum((r.grad_square_sum or 0.0) / (r.grad_replicas or 1) for r in records) ** 0.5)
    return losses, norms


@pytest.mark.parametrize("name", strategies.names())
def test_same_training_as_one_process(name: str) -> None:
    """Loss and gradient norm of every step equal those of one process, in every precision, optimizer, accumulation."""
    strategy = strategies.load(name)
    world_size = 1 if strategy.unsupported(CASES[0]) else 2
    cases = [replace(case, world_size=world_size) for case in CASES]
    assert all(strategy.unsupported(case) is None for case in cases)
    by_rank = run_ranks(train_on_rank, world_size, name, cases)
    for index, case in enumerate(cases):
        found = combined([rank[index] for rank in by_rank])
        for what, values, expected in zip(("loss", "grad_norm"), found, reference(case), strict=True):
            assert values == pytest.approx(expected, rel=TOLERANCE[case.precision]), f"{what} under {case}"


def state_on_rank(rank: Rank, name: str, cases: list[Setting]) -> list[list[MemoryRecord]]:
    """Model state of micro models of different width, at their second step."""
    found = []
    for setting in cases:
        records = []
        for width in WIDTHS:
            run = strategies.load(name).shard(model_of(setting, width), setting)
            for step, batch in enumerate(batches_of(rank.rank, setting)[:2]):
                run.backward(run.forward(batch, last=True), last=True)
                if step == 1:
                    records.append(model_state(step, run.state()))
                run.step(last=True)
        found.append(records)
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", strategies.names())
def test_model_state_equals_the_law(name: str, world_size: int) -> None:
    """Live bytes of parameters, gradients and optimizer are the law's, to the byte, on every rank."""
    settings = [
        Setting(world_size=world_size, device="cpu", optimizer=optimizer, precision="fp32", micro_batch=MICRO_BATCH)
        for optimizer in ("adamw", "sgd")
    ]
    strategy = strategies.load(name)
    if reason := strategy.unsupported(settings[0]):
        pytest.skip(f"{name}: {reason}")
    by_rank = run_ranks(state_on_rank, world_size, name, settings)
    for rank, cases in enumerate(by_rank):
        for setting, records in zip(settings, cases, strict=True):
            for width, record in zip(WIDTHS, records, strict=True):
                sizes = tuple(p.numel() for p in micro_model.build_model(width).parameters())
                law = strategy.law(sizes, setting).ranks[rank]
                measured = (record.parameters_bytes, record.gradients_bytes, record.optimizer_bytes)
                assert measured == (law.parameters, law.gradients, law.optimizer), f"rank {rank}, width {width}"
