"""Gradients of the whole model against finite differences in double precision."""

import pytest
import torch
from scalelab.models.driving import build_model, example_batch

STEP = 1e-6


@pytest.fixture(scope="module")
def checked():
    """Per parameter: the derivative along a random direction by backward, and by central differences."""
    torch.manual_seed(0)
    model, batch = build_model("nano").double(), example_batch(2, "nano", seed=3)
    rng = torch.Generator().manual_seed(1)
    model(batch).backward()
    table = {}
    for name, weight in model.named_parameters():
        way = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
        way /= way.norm()
        assert weight.grad is not None
        with torch.no_grad():
            weight += STEP * way
            above = model(batch)
            weight -= 2 * STEP * way
            below = model(batch)
            weight += STEP * way
        assert weight.grad is not None
        table[name] = ((weight.grad * way).sum().item(), (above - below).item() / (2 * STEP))
    return table


def test_gradients_match_finite_differences(checked):
    """Along a random direction in each parameter tensor, backward agrees with central differences."""
    wrong = {name: pair for name, pair in checked.items() if abs(pair[0] - pair[1]) > 1e-5 * abs(pair[1]) + 1e-7}
    assert not wrong


def test_every_parameter_has_a_gradient(checked):
    """No parameter is dead at the start: each one's gradient is felt by whoever checks a strategy."""
    dead = {name for name, (exact, _) in checked.items() if abs(exact) < 1e-9}
    assert not dead
