"""What is watched of a model's numbers on a CPU, and what the watch leaves behind."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
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


def watched(model: Net) -> FiniteWatch:
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


def test_a_part_whose_outputs_are_too_large_is_left_alone() -> None:
    watch = FiniteWatch(parts_of(model := Outer(nn.Linear(4, SMALL_ELEMENTS)), []))
    watch.sharded()
    model(torch.ones(2, 4))
    assert [name for name, part in model.named_children() if "forward" in vars(part)] == ["first"]


def test_nothing_is_noted_where_nothing_is_trained() -> None:
    watch = watched(model := Net())
    watch.sharded()
    with torch.no_grad():
        model.last(torch.full((2, 4), math.nan))
    assert watch.take() == ([], [])


def test_a_part_keeps_what_it_was() -> None:
    """Its signature; its own `forward`, where it had one; and neither a copy nor what is stored of it has the watch."""
    watch = watched(model := Net())
    signature = inspect.signature(model.first.forward)
    model.last.forward = own = functools.partial(nn.Linear.forward, model.last)
    watch.sharded()
    assert inspect.signature(model.first.forward) == signature
    for other in (copy.deepcopy(model).first, pickle.loads(pickle.dumps(model.first))):
        nn.init.zeros_(other.weight)
        nn.init.zeros_(other.bias)
        assert not other(torch.ones(2, 4)).any()
        assert not watch._outputs
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
