"""What a rank that runs out of memory says: who held what, and from what the micro-batch that fits is estimated."""

from __future__ import annotations

import weakref
from types import ModuleType
from typing import Any

import pytest
import torch
from scalelab.launch import strategies
from scalelab.launch.footprint import Footprint, _Follower, measure, tensors
from scalelab.launch.out_of_memory import Training, explain
from scalelab.launch.setting import Setting
from scalelab.models.contract import ModelSource
from torch import nn

from tests.support import micro_model


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
