"""A rank that runs out of memory says who held what, and a micro-batch that fits: with real limits, against trying."""

from __future__ import annotations

import multiprocessing
import resource
import weakref
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scalelab.launch import strategies
from scalelab.launch.build import build
from scalelab.launch.footprint import Footprint, _Follower, measure, tensors
from scalelab.launch.out_of_memory import Training, explain
from scalelab.launch.ranks import Rank
from scalelab.launch.setting import Setting
from scalelab.launch.supervision.oom_killer import is_out_of_memory
from scalelab.models.contract import ModelSource, load_model
from torch import nn

from tests.support import micro_model
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


class Chain(nn.Module):
    """Two products of known size with a sum of squares behind."""

    def __init__(self, look: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.look = look

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.second(self.first(batch["x"]).relu())
        if self.look and hidden.sum().item() > 0:
            hidden = hidden * 2
        if "against" in batch:
            hidden = hidden @ hidden.T
        return hidden.square().mean()


def source_of(build_model: Any, example_batch: Any) -> ModelSource:
    module = ModuleType("written_here")
    module.__dict__.update(build_model=build_model, example_batch=example_batch)
    return ModelSource("written_here", module)


def example_batch(size: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(size, 64)}


def follow(source: ModelSource, batch: Any = None, strategy: str = "single", **options: Any) -> Footprint:
    setting = Setting(world_size=1, device="cpu", micro_batch=8, **options)
    return measure(source, setting, 0, strategies.load(strategy), batch)


def test_a_footprint_is_what_real_tensors_take() -> None:
    """What fake tensors are followed to need is what real ones are alive at most, to the byte, at sizes not tried."""
    footprint = follow(source_of(Chain, example_batch))
    row, weights = 64 * 4, 64 * 64 * 4
    for size in (1, 2, 7, 100):
        model, batch = Chain(), example_batch(size)
        follower = _Follower([*model.parameters(), *tensors(batch)])
        with follower:
            model(batch).backward()
        assert footprint.peak_bytes(size) == most_alive(follower.events) >= size * 3 * row
        assert footprint.batch_bytes(size) == size * row
    assert footprint.peak_bytes(1) >= 2 * weights


def most_alive(events: list[tuple[int, int]]) -> int:
    alive, most = {}, 0
    for number, size in events:
        if size < 0:
            del alive[number]
        else:
            alive[number] = size
        most = max(most, sum(alive.values()))
    return most


def test_a_loss_that_compares_samples_grows_with_the_square() -> None:
    """Memory that grows with the square of the batch is not taken for a line."""
    source = source_of(Chain, lambda size: {**example_batch(size), "against": torch.zeros(size)})
    footprint = follow(source)
    assert footprint.peak_bytes(1000) > 2 * 1000 * 1000 * 4


def test_checkpointing_and_sharded_gradients_take_less() -> None:
    """The setting is followed: less is kept with checkpointing, and whole gradients do not stay where they are cut."""
    source = source_of(micro_model.build_model, micro_model.example_batch)
    plain, full = follow(source), follow(source, checkpointing="full")
    cut = follow(source, strategy="zero2", accumulation_sync="each")
    assert full.peak_bytes(8) < plain.peak_bytes(8)
    assert cut.peak_bytes(1) <= plain.peak_bytes(1)


def test_the_live_batch_decides_where_it_can_be_cut() -> None:
    """A batch that begins with its samples gives the sizes, another leaves it to the example batch."""
    source = source_of(Chain, example_batch)
    assert follow(source, {"x": torch.zeros(8, 5, 64)}).batch_bytes(2) == 2 * 5 * 64 * 4
    assert follow(source, {"x": torch.zeros(3, 8, 64)}).batch_bytes(2) == 2 * 64 * 4


def failed() -> RuntimeError:
    try:
        torch.empty(10**15)
    except RuntimeError as error:
        return error
    raise AssertionError


def said_of(source: ModelSource, micro_batch: int = 8, run: Any = None) -> dict[str, Any]:
    setting = Setting(world_size=2, device="cpu", micro_batch=micro_batch)
    return explain(failed(), Training(source=source, setting=setting, strategy="ddp", seed=0), run)


@pytest.mark.fault(43)
def test_a_model_that_cannot_be_followed_has_no_estimate_but_a_reason() -> None:
    """A forward that looks at values: null with the reason, the rest of the table stands."""
    said = said_of(source_of(lambda: Chain(look=True), example_batch))
    assert said["largest_micro_batch"] is None
    assert "tensors without data" in said["largest_micro_batch_reason"]
    assert said["asked_bytes"] == 4 * 10**15
    assert "unknown" in said["table"]


@pytest.mark.fault(43)
def test_where_one_sample_does_not_fit_the_way_out_is_named() -> None:
    """No micro-batch below 1: what shards, recomputes or shortens is offered."""
    said = said_of(source_of(Chain, example_batch), micro_batch=1)
    assert said["largest_micro_batch"] == 0
    for way in ("zero3", "fsdp2", "--checkpointing full", "--precision bf16"):
        assert way in said["hint"]


def test_what_breaks_while_explaining_is_left_out() -> None:
    """A wrapper that cannot be asked, a model that cannot be built: still a table, never an exception."""

    def broken(*_: Any) -> Any:
        raise MemoryError

    said = said_of(source_of(broken, broken), run=object())
    assert said["limit"] is not None
    assert said["held_bytes"]["parameters"] is None
    assert "ran out of memory" in said["table"]


def test_the_failed_step_is_dropped() -> None:
    """The frames an error went through let go of what they hold before anything is counted."""

    class Failing(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            held.append(weakref.ref(torch.zeros(1000)))
            raise MemoryError

    def step() -> None:
        # Torch's call of a module with a hook keeps the inputs in a closure.
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        module = Failing()
        module.register_forward_hook(lambda *_: None)
        module(activations)

    held: list[Any] = []
    try:
        step()
    except MemoryError as error:
        setting = Setting(world_size=1, device="cpu")
        training = Training(source=source_of(Chain, example_batch), setting=setting, strategy="single", seed=0)
        assert held[0]() is not None
        explain(error, training)
        assert held[0]() is None
