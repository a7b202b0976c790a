"""What is watched of a model's numbers on a CPU, and what the watch leaves behind."""

from __future__ import annotations

import math

import pytest
import torch
from scalelab.profiles.capture.finite import FiniteWatch, first_not_finite, parts_of
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


def test_no_hook_is_left_while_it_is_off() -> None:
    watch = watched(model := Net(math.nan))
    watch.sharded()
    with watch.off():
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        watch.micro_batch_over(backward(model))
        assert watch.take() == ([], [])
    watch.micro_batch_over(backward(model))
    assert watch.take()[1]
