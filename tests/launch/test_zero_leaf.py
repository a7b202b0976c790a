"""Blocks that DeepSpeed gathers whole get what its hooks need, or are refused with the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scalelab.launch.strategies._zero_leaf import keep_leaf_rules
from scalelab.models.errors import ModelError
from torch import nn


class Block(nn.Module):
    def __init__(self, finish: Callable[[Any], Any] = lambda y: y) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.finish = finish
        self.seen: list[tuple[Any, ...]] = []

    def forward(self, x: Any, *, scale: float = 1.0) -> Any:
        self.seen.append((x, scale))
        return self.finish(self.layer(x if isinstance(x, torch.Tensor) and x.is_floating_point() else torch.ones(3)))


def run(block: Block, argument: Any, times: int) -> None:
    for _ in range(times):
        block(argument)


def leaf(block: Block) -> tuple[Block, set[nn.Module]]:
    has_run: set[nn.Module] = set()
    keep_leaf_rules(block, has_run)
    return block, has_run


def test_an_argument_by_name_becomes_positional_and_needs_a_gradient() -> None:
    """What torch's full backward hook looks at; the values stay."""
    block, _ = leaf(Block())
    order: list[str] = []
    block.register_full_backward_hook(lambda *ignored: order.append("hook"))
    block.layer.weight.register_hook(lambda grad: order.append("weight"))
    x = torch.ones(3)
    block(x=x, scale=2.0).sum().backward()
    seen, scale = block.seen[0]
    assert torch.equal(seen, x)
    assert (scale, x.requires_grad) == (2.0, False)
    assert order == ["weight", "hook"]


def test_an_argument_that_needs_a_gradient_is_left_alone() -> None:
    """Its gradient flows on to what came before."""
    block, _ = leaf(Block())
    x = torch.ones(3, requires_grad=True)
    block(x).sum().backward()
    assert x.grad is not None


def test_without_gradients_anything_goes() -> None:
    """An evaluation may run a block as often as it likes."""
    block, has_run = leaf(Block())
    with torch.no_grad():
        block((1, 2))
        block((1, 2))
    assert not has_run


@pytest.mark.parametrize(
    ("block", "argument", "times", "part"),
    [
        (Block(), torch.ones(3), 2, "runs twice"),
        (Block(), torch.ones(3, dtype=torch.int64), 1, "no floating-point tensor"),
        (Block(), (torch.ones(3), 1), 1, "no floating-point tensor"),
        (Block(lambda y: {"y": y}), torch.ones(3), 1, "something else than tensors"),
    ],
)
def test_what_deepspeed_would_get_wrong_is_refused(block: Block, argument: Any, times: int, part: str) -> None:
    """Each with the block's class and the way out."""
    leaf(block)
    with pytest.raises(ModelError, match=f"Block.*{part}|{part}.*fsdp2"):
        run(block, argument, times)
