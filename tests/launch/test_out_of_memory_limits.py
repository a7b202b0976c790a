"""A rank that runs out of memory under a real limit names a micro-batch that fits: held against trying."""

from __future__ import annotations

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scalelab.launch import strategies
from scalelab.launch.build import build
from scalelab.launch.out_of_memory import Training, explain
from scalelab.launch.ranks import Rank
from scalelab.launch.setting import Setting
from scalelab.launch.supervision.oom_killer import is_out_of_memory
from scalelab.models.contract import load_model

from tests.support.ranks import run_ranks

LIMITS = {"RLIMIT_AS": (resource.RLIMIT_AS, "VmSize"), "RLIMIT_DATA": (resource.RLIMIT_DATA, "VmData")}
STEPS = 3
MLP = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.GELU()) for _ in range(12)))

    def forward(self, batch):
        return self.layers(batch["x"]).square().mean()

def build_model():
    return Model()

def example_batch(size):
    return {"x": torch.randn(size, 512, 256)}
"""


def limit(name: str, budget: int) -> None:
    """Allow this process `budget` bytes more than it has."""
    number, field = LIMITS[name]
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    used = int(lines[field].split()[0]) * 1024
    resource.setrlimit(number, (used + budget, resource.RLIM_INFINITY))


def train(
    rank: Rank, model: str, setting: Setting, strategy: str, name: str, budget: int, tight: tuple[int, ...]
) -> Any:
    """What `explain` says on a rank of `tight`, which may take `budget` bytes once its model is wrapped; None if it
    trains for a few steps, and on the other ranks, which only wrap the model."""
    source = load_model(model, {})
    built, blocks = build(source, setting, 0)
    run, batch = strategies.load(strategy).shard(built, setting, blocks), None
    if rank.rank not in tight:
        return None
    limit(name, budget)
    try:
        batch = source.example_batch(setting.micro_batch)
        _steps(run, batch)
    except BaseException as error:
        training = Training(source=source, setting=setting, strategy=strategy, seed=0, rank=rank.rank)
        return {"recognised": is_out_of_memory(error), "error": repr(error), **explain(error, training, run, batch)}
    return None


def _steps(run: Any, batch: Any) -> None:
    for _ in range(STEPS):
        loss = run.forward(batch, True)
        run.backward(loss, True)
        run.step(True)


def tried(model: str, checkpointing: Any, micro_batch: int, name: str, budget: int) -> Any:
    """`train` in a process of its own."""
    setting = Setting(world_size=1, device="cpu", checkpointing=checkpointing, micro_batch=micro_batch)
    rank = Rank(rank=0, local_rank=0, world_size=1, local_world_size=1)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver"), max_tasks_per_child=1) as pool:
        return pool.submit(train, rank, model, setting, "single", name, budget, (0,)).result()


def truth(model: str, checkpointing: str, name: str, budget: int, failing: int) -> int:
    """The largest micro-batch that trains, found by trying."""
    fits = 0
    while failing - fits > 1:
        middle = (fits + failing) // 2
        if tried(model, checkpointing, middle, name, budget) is None:
            fits = middle
        else:
            failing = middle
    return fits


@pytest.mark.slow
@pytest.mark.fault(43)
@pytest.mark.parametrize(
    ("name", "model", "checkpointing", "budget", "failing"),
    [
        ("RLIMIT_AS", "nano", "none", 256 << 20, 64),
        ("RLIMIT_AS", "nano", "full", 256 << 20, 64),
        ("RLIMIT_AS", "tiny", "none", 640 << 20, 24),
        ("RLIMIT_AS", "tiny", "full", 640 << 20, 48),
        ("RLIMIT_AS", "tiny", "selective", 640 << 20, 32),
        ("RLIMIT_AS", "mlp", "none", 384 << 20, 64),
        ("RLIMIT_AS", "mlp", "full", 384 << 20, 96),
        ("RLIMIT_DATA", "nano", "none", 512 << 20, 96),
        ("RLIMIT_DATA", "tiny", "full", 640 << 20, 48),
    ],
)
def test_the_estimate_fits_and_is_most_of_the_truth(
    name: str, model: str, checkpointing: str, budget: int, failing: int, tmp_path: Path
) -> None:
    """The micro-batch that is named trains under the limit, and is at least 60 % of the largest that does."""
    path = tmp_path / "mlp.py"
    path.write_text(MLP)
    place = str(path) if model == "mlp" else model
    said = tried(place, checkpointing, failing, name, budget)
    assert said is not None
    estimate = said["largest_micro_batch"]
    largest = truth(place, checkpointing, name, budget, failing)
    print(f"\n{model} {checkpointing} {name}: estimate {estimate}, truth {largest}\n{said['table']}\n{said['error']}")
    assert said["recognised"], said["error"]
    assert 0.6 * largest <= estimate <= largest


@pytest.mark.fault(43)
def test_one_rank_of_two_says_who_held_what() -> None:
    """A rank under DDP whose forward outgrows a real limit says so, with kinds that add up to what was used."""
    setting = Setting(world_size=2, device="cpu", micro_batch=48, bucket_mb=25.0, overlap=True)
    other, said = run_ranks(train, 2, "nano", setting, "ddp", "RLIMIT_AS", 200 << 20, (1,))
    assert other is None
    assert said["recognised"], said["error"]
    assert said["asked_bytes"] > 1 << 20
    assert said["limit"]["name"].startswith("RLIMIT_AS")
    held = said["held_bytes"]
    assert sum(count or 0 for count in held.values()) == said["limit"]["used_bytes"] <= said["limit"]["bytes"]
    assert held["parameters"] >= 4 * 87299
    assert held["batch"] > 20 << 20
    assert held["activations and temporaries"] > 50 << 20
    assert 5 <= said["largest_micro_batch"] < 48
    assert "rank 1 ran out of memory when it asked for" in said["table"]
    assert f"--micro-batch {said['largest_micro_batch']}" in said["hint"]


@pytest.mark.slow
@pytest.mark.fault(43)
@pytest.mark.parametrize("strategy", [name for name in strategies.names() if name != "single"])
def test_the_estimate_fits_under_every_strategy(strategy: str) -> None:
    """Two ranks under a limit each: the micro-batch that is named trains, and is not next to nothing."""
    plan = strategies.load(strategy)
    sync = plan.accumulation_syncs[0]
    setting = Setting(world_size=2, device="cpu", micro_batch=64, bucket_mb=1.0, overlap=False, accumulation_sync=sync)
    limited = ("RLIMIT_DATA", 300 << 20)
    said = run_ranks(train, 2, "nano", setting, strategy, *limited, (0, 1))
    named = [rank["largest_micro_batch"] for rank in said if rank["recognised"]]
    print(f"\n{strategy}: {named}\n{said[0]['table']}")
    assert named
    smallest = replace(setting, micro_batch=min(named))
    assert smallest.micro_batch >= 8
    assert run_ranks(train, 2, "nano", smallest, strategy, *limited, (0, 1)) == [None, None]
