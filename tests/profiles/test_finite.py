"""What is watched of a model's numbers on a CPU, and what the watch leaves behind."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
import typing
from typing import Any

import pytest
import torch
from scalelab.profiles.capture.finite import SMALL_ELEMENTS, FiniteWatch, _tensors, first_not_finite, parts_of
from torch import nn


class Net(nn.Module):
    """Parts with a bias, and one that has nothing but a matrix, at whose output a gradient can be spoilt."""

    def __init__(self, planted: float = 1.0) -> None:
        super().__init__()
        self.planted = planted
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(self.first(x))
        x.register_hook(lambda gradient: gradient * self.planted)
        return self.last(x).sum()


def watched(model: nn.Module) -> FiniteWatch:
    return FiniteWatch(parts_of(model, []))


def backward(model: Net) -> float:
    loss = model(torch.ones(2, 4))
    loss.backward()
    return loss.item()


def test_nothing_is_kept_of_finite_numbers() -> None:
    watch = watched(model := Net())
    watch.sharded()
    watch.micro_batch_over(backward(model))
    assert watch.take() == ([], [])
    assert all(gradient is None for gradient in watch._last)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_part_where_it_arose_comes_first(bad: float) -> None:
    """Backward comes from the last part to the first: the one behind the fault is fine, those before it are not."""
    watch = watched(model := Net(bad))
    watch.sharded()
    watch.micro_batch_over(backward(model))
    assert first_not_finite(watch.take()[1]) == "the gradient of middle.weight"


def test_an_earlier_micro_batch_is_not_forgotten() -> None:
    """A fault in the first of two, of which the second is fine."""
    watch = watched(model := Net(math.nan))
    watch.sharded()
    watch.micro_batch_over(backward(model))
    model.planted = 1.0
    watch.micro_batch_over(backward(model))
    assert first_not_finite(watch.take()[1]) == "the gradient of middle.weight"


def test_parameters_may_be_empty_while_they_are_sharded() -> None:
    """DeepSpeed's ZeRO-3 leaves an empty vector in each parameter's place until it is used."""
    watch = watched(model := Net(math.nan))
    whole = {parameter: parameter.data for parameter in model.parameters()}
    for parameter in whole:
        parameter.data = torch.empty(0)
    watch.sharded()
    for parameter, data in whole.items():
        parameter.data = data
    watch.micro_batch_over(backward(model))
    assert first_not_finite(watch.take()[1]) == "the gradient of middle.weight"


class Said(nn.Module):
    """A part that returns several things."""

    def forward(self, x: torch.Tensor, *, twice: bool = False) -> dict[str, Any]:
        return {"many": [x, torch.ones(2 * SMALL_ELEMENTS)], "none": None, "bad": x * math.nan if twice else x}


class Outer(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first, self.part = nn.Linear(4, 4), part

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return sum(each.sum() for each in _tensors(self.part(self.first(x), **options)))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("times", [1, 2])
def test_outputs_are_looked_into(times: int) -> None:
    """Also in a dictionary that holds a tensor which is too large to be kept; in the first step and later."""
    watch = FiniteWatch(parts_of(model := Outer(Said()), []))
    watch.sharded()
    for time in range(times):
        loss = model(torch.ones(2, 4), twice=time == times - 1)
        loss.backward()
        watch.micro_batch_over(loss.item())
    outputs, _ = watch.take()
    assert first_not_finite(outputs) == "the output of part"
    assert all(tensor.numel() <= SMALL_ELEMENTS for _, tensor in outputs)
    assert watch.take() == ([], [])


class Grows(nn.Module):
    """Each part puts what it found into the dictionary that it was handed, as detectors do."""

    def __init__(self, key: str, elements: int, factor: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, elements)
        self.key, self.factor = key, factor

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        batch[self.key] = self.layer(batch["x"]) * self.factor
        return batch


def test_a_dictionary_is_looked_into_when_it_is_returned() -> None:
    """Not later, when another part has put something bad or large into it."""
    model = nn.Sequential(Grows("few", 4), Grows("many", SMALL_ELEMENTS), Grows("bad", 4, math.nan))
    watch = watched(model)
    watch.sharded()
    model({"x": torch.ones(2, 4)})
    found = model({"x": torch.ones(2, 4)})
    assert {name for name, _ in watch._outputs} == {"0", "1", "2"}
    assert max(tensor.numel() for _, tensor in watch._outputs) < SMALL_ELEMENTS
    assert all(tensor.grad_fn is None for _, tensor in watch._outputs)
    assert first_not_finite(watch.take()[0]) == "the output of 2"
    assert found["bad"].grad_fn is not None


def test_outputs_that_are_too_large_are_not_kept() -> None:
    """Whatever size they had before."""
    watch = watched(model := nn.Sequential(nn.Linear(4, 1024)))
    watch.sharded()
    for rows in (2, 128):
        model(torch.ones(rows, 4))
    assert [tensor.shape for _, tensor in watch.take()[0]] == [(2, 1024)]


def test_memory_that_was_taken_away_is_not_read() -> None:
    """FSDP2 frees a parameter's storage behind what a part returned of it."""
    watch = watched(model := nn.Sequential(nn.Linear(4, 4)))
    watch.sharded()
    model(torch.ones(2, 4)).untyped_storage().resize_(0)
    assert watch.take() == ([], [])


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_model_that_compiles_its_parts_compiles_them_no_more_often(fullgraph: bool) -> None:
    """However often the watch is off for a while."""
    watch = watched(model := nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    watch.sharded()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: model(x).sum(), backend=backend, fullgraph=fullgraph)
    counts = []
    for _ in range(10):
        with watch.off():
            compiled(torch.ones(2, 4)).backward()
        compiled(torch.ones(2, 4)).backward()
        assert [name for name, _ in watch.take()[0]] == ["the output of 0", "the output of 1"]
        counts.append(len(graphs))
    assert counts[-1] == counts[1]


def test_what_somebody_put_around_a_part_stays() -> None:
    """Nothing is noted while the watch is off, and once when it is on."""
    watch = watched(model := nn.Sequential(nn.Linear(4, 4)))
    watch.sharded()
    part: Any = model[0]
    inner = part.forward
    part.forward = lambda x: inner(x) * 2
    for _ in range(2):
        with watch.off():
            model(torch.ones(2, 4))
            assert watch.take() == ([], [])
        model(torch.ones(2, 4))
        assert len(watch.take()[0]) == 1


def test_a_scripted_part_is_left_alone() -> None:
    watch = watched(model := nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 4)))
    watch.sharded()
    model(torch.ones(2, 4)).sum().backward()
    assert [name for name, _ in watch.take()[0]] == ["the output of 1"]


def test_nothing_is_noted_where_nothing_is_trained() -> None:
    watch = watched(model := Net())
    watch.sharded()
    with torch.no_grad():
        model.last(torch.full((2, 4), math.nan))
    assert watch.take() == ([], [])


def test_a_part_keeps_what_it_was() -> None:
    """Its signature; its own `forward`, where it had one; and neither a copy nor what is stored of it has the watch."""
    watch = watched(model := Net())
    own: Any = functools.partial(torch.mul, 2)
    model.last.forward = own
    signature, hints = inspect.signature(model.first.forward), typing.get_type_hints(model.first.forward)
    watch.sharded()
    assert inspect.signature(model.first.forward) == signature
    assert typing.get_type_hints(model.first.forward) == hints
    copied: Any = copy.deepcopy(model)
    for first in (copied.first, pickle.loads(pickle.dumps(model.first))):
        nn.init.zeros_(first.weight)
        nn.init.zeros_(first.bias)
        assert not first(torch.ones(2, 4)).any()
    for last in (copied.last, pickle.loads(pickle.dumps(model.last))):
        assert last(torch.ones(())) == 2
    assert not watch._outputs
    assert model.last(torch.ones(())) == 2
    with watch.off():
        assert model.last.forward is own


def test_no_hook_is_left_while_it_is_off() -> None:
    watch = watched(model := Net(math.nan))
    watch.sharded()
    with watch.off():
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert not any("forward" in vars(module) for module in model.modules())
        watch.micro_batch_over(backward(model))
        assert watch.take() == ([], [])
    watch.micro_batch_over(backward(model))
    assert watch.take()[1]
