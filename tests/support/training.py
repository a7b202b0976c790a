"""Training a micro model on ranks under a strategy, and the same in one process written out with torch alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from scalelab.launch import strategies
from scalelab.launch.build import prepare
from scalelab.launch.loop import train
from scalelab.launch.ranks import Rank
from scalelab.launch.schedule import Step
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._contract import Sharded, Strategy
from scalelab.profiles.analysis.columns import Steps
from scalelab.profiles.analysis.load import RankRecords, Run
from scalelab.profiles.analysis.training import grad_norm, loss
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.records import Record, StepRecord
from torch import nn

from tests.support import micro_model, ranks

STEPS = 10
MICRO_BATCH = 3
AUTOCAST = {"bf16": torch.bfloat16, "bf16-params": torch.bfloat16, "fp16": torch.float16}


def supported(strategy: Strategy, cases: Sequence[Setting]) -> list[Setting]:
    """The cases that `strategy` takes, with its own default of what it leaves open."""
    found = []
    for case in cases:
        if case.accumulation_sync not in strategy.accumulation_syncs:
            case = replace(case, accumulation_sync=strategy.accumulation_syncs[0])
        if "bucket_mb" in strategy.knobs and case.bucket_mb is None:
            case = replace(case, bucket_mb=25.0)
        if "overlap" in strategy.knobs and case.overlap is None:
            case = replace(case, overlap=strategy.default_overlap(case.device))
        if case.engine in strategy.engines and strategy.unsupported(case) is None and case not in found:
            found.append(case)
    return found


def tolerance(case: Setting) -> float:
    """Tighter than what two strategies may differ by on real models, so that another precision is seen: fp32 training
    is within 3e-3 of bf16. Only gradients that are added up in bf16, in another order, need more."""
    if case.precision == "bf16-params" and case.accumulation > 1:
        return 1e-2
    return 1e-5 if case.precision == "fp32" else 1e-4


def micro(width: int, kind: str = "plain") -> tuple[nn.Module, list[nn.Module]]:
    torch.manual_seed(0)
    model = micro_model.build_model(width, kind)
    return model, micro_model.blocks(model)


def micro_batches(rank: int, setting: Setting) -> list[Any]:
    """The micro-batches of one rank, in order, for all steps."""
    generator = torch.Generator().manual_seed(1000 + rank)
    return [
        {"x": (x := torch.randn(MICRO_BATCH, 7, generator=generator)), "y": 3 * x.sum(-1).sin() + rank}
        for _ in range(STEPS * setting.accumulation)
    ]


def sharded(name: str, setting: Setting, width: int, kind: str = "plain") -> Sharded:
    """The micro model under a strategy."""
    model, blocks = micro(width, kind)
    prepare(model, blocks, "micro", setting)
    return strategies.load(name).shard(model, setting, blocks)


def records_of(run: Sharded, batches: Sequence[Any]) -> list[StepRecord]:
    """Train `run` on `batches` in our own loop."""
    records: list[Record] = []
    probe = Probe(lambda *written: records.extend(written), HostTimeline(), grad_norm_steps=99, comm=ranks.recorder)
    count = len(batches) // run.setting.accumulation
    steps = [Step(index=i, role="measured", lr=run.setting.lr, samples=MICRO_BATCH) for i in range(count)]
    train(run, iter(batches), steps, probe, lambda batch: batch)
    probe.close()
    return [record for record in records if isinstance(record, StepRecord)]


def train_on_rank(
    rank: Rank, name: str, cases: list[Setting], width: int, kind: str = "plain"
) -> list[list[StepRecord]]:
    """The step records of `cases`, one after the other in the same processes."""
    untouched = torch.nn.functional.linear
    found = []
    for setting in cases:
        run = sharded(name, setting, width, kind)
        found.append(records_of(run, micro_batches(rank.rank, setting)))
        run.close()
        assert torch.nn.functional.linear is untouched, f"{name} replaced torch.nn.functional.linear"
    return found


def combined(per_rank: Sequence[Sequence[StepRecord]]) -> dict[str, list[float | None]]:
    """Losses and gradient norms over ranks, by the analysis that writes a run's summary."""
    ranks = tuple(
        RankRecords(
            rank=rank, start=None, steps=Steps.of(steps), events=(), memory=None, window=None, end=None, unreadable=0
        )
        for rank, steps in enumerate(per_rank)
    )
    run = Run(run_id="", run_json={"config": {"record_grad_norm": True}}, status={}, ranks=ranks)
    return {"loss": loss(run) or [], "grad_norm": grad_norm(run, lambda path, why: None) or []}


def reference(
    setting: Setting,
    model: nn.Module,
    feed: Callable[[int, Setting], list[Any]] = micro_batches,
    growth_interval: int = 2000,
) -> dict[str, list[float | None]]:
    """Losses and gradient norms of one process that runs all ranks' micro-batches in rank order and averages.

    The average over ranks is taken after backward, so that fp16 overflows where it would on a rank.
    """
    low = setting.precision == "bf16-params"
    if low:
        model.to(torch.bfloat16)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = [weight.detach().float().requires_grad_() for weight in weights] if low else weights
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[setting.optimizer]
    optimizer = kind(masters, lr=setting.lr, **setting.hyperparameters)
    scaler = torch.amp.GradScaler("cpu", growth_interval=growth_interval, enabled=setting.precision == "fp16")
    feeds = [feed(rank, setting) for rank in range(setting.world_size)]
    found: dict[str, list[float | None]] = {"loss": [], "grad_norm": []}
    for step in range(len(feeds[0]) // setting.accumulation):
        first = step * setting.accumulation
        parts = [part for feed in feeds for part in feed[first : first + setting.accumulation]]
        total = 0.0
        for batch in parts:
            low_compute = AUTOCAST.get(setting.precision)
            with torch.autocast("cpu", low_compute, enabled=low_compute is not None, cache_enabled=False):
                value = model(batch)
            scaler.scale(value / setting.accumulation).backward()
            total += float(value.detach()) / len(parts)
        for weight, master in zip(weights, masters, strict=True):
            assert weight.grad is not None
            average, weight.grad = weight.grad / setting.world_size, None
            master.grad = average.to(master.dtype)
        scaler.unscale_(optimizer)
        norm = float(torch.stack([master.grad.norm() for master in masters if master.grad is not None]).norm())
        found["loss"].append(total)
        found["grad_norm"].append(norm if math.isfinite(norm) else None)
        if setting.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(masters, setting.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if low:
            with torch.no_grad():
                for weight, master in zip(weights, masters, strict=True):
                    weight.copy_(master)
    return found
