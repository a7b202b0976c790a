"""Operations are counted as by hand: each layer exactly, the built-in model by branch, what checkpoints do again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scalelab.launch.recompute import checkpoint_blocks
from scalelab.models.driving import blocks, branches, build_model, config_from, example_batch
from scalelab.profiles.capture.flops import OUTSIDE, Flops, count_flops, mean_flops
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._pytree import tree_map

NO_BRANCHES: dict[str, Sequence[nn.Module]] = {}


def test_a_mean_is_over_micro_batches() -> None:
    """Of shapes that came unequally often, each counts as often as it came."""
    counted = {"long": Flops({"a": 100, "b": 0}, 10, {}), "short": Flops({"a": 20}, 0, {})}
    assert mean_flops(counted, {"long": 1, "short": 3}) == Flops({"a": 40, "b": 0}, 2, {})


class Loss(nn.Module):
    """The sum of a layer's output, so that every gradient is asked for."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.sum()


def counted(*layers: nn.Module, x: torch.Tensor, **named: Sequence[nn.Module]) -> Flops:
    return count_flops(Loss(*layers), x, named)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("learns_input", [False, True])
def test_a_linear_layer_is_three_products_or_two(rows: int, learns_input: bool) -> None:
    """Forward, the weight's gradient, and the input's where somebody asks for it: 2 in out operations a row each."""
    found = counted(nn.Linear(5, 3), x=torch.randn(rows, 5, requires_grad=learns_input))
    assert found.total == 2 * rows * 5 * 3 * (3 if learns_input else 2)
    assert found.recomputed == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_and_its_gradients(stride: int, padding: int, groups: int, transposed: bool) -> None:
    """Every place of the output (of the input where transposed) times the filter, for a group's channels alone; the
    gradients of weight and input cost the same again. Borders count as if they were there."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(4, 6, (3, 5), stride=stride, padding=padding, groups=groups)
    x = torch.randn(2, 4, 11, 13)
    height, width = x.shape[2:] if transposed else layer(x).shape[2:]
    forward = 2 * 2 * height * width * 4 * 6 // groups * 3 * 5
    assert counted(layer, x=x).total == 2 * forward
    assert counted(layer, x=x.requires_grad_()).total == 3 * forward


class SelfAttention(nn.Module):
    """x (B, N, D) in `heads` heads, by torch's own function or by plain products."""

    def __init__(self, heads: int, *, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        plain = (q @ q.transpose(-1, -2)).softmax(-1) @ q if not self.fused else None
        mixed = F.scaled_dot_product_attention(q, q, q) if plain is None else plain
        return mixed.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_counts_the_same_by_whichever_kernel(fake: bool, fused: bool) -> None:
    """Scores and values are 2 N^2 D each, backward twice that: fused or not, on real tensors or on fake ones."""
    batch, tokens, width = 2, 6, 16
    with FakeTensorMode() if fake else contextlib.nullcontext():
        x = torch.randn(batch, tokens, width, requires_grad=True)
        found = counted(SelfAttention(4, fused=fused), x=x)
    assert found.total == 3 * batch * 4 * tokens**2 * width


def test_attention_to_another_length_and_with_another_width_of_values() -> None:
    """S keys, values of width E: 2 N S (D + E) a head, and backward twice that."""

    class Cross(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            keys = torch.ones(2, 3, 9, 8, requires_grad=True)
            return F.scaled_dot_product_attention(x, keys, torch.ones(2, 3, 9, 12, requires_grad=True))

    found = counted(Cross(), x=torch.randn(2, 3, 5, 8, requires_grad=True))
    assert found.total == 3 * 2 * 3 * 2 * 5 * 9 * (8 + 12)


def test_operations_belong_to_the_branch_that_made_them() -> None:
    """In backward too, where a branch's input asks for no gradient; what lies in none is shown as a remainder."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5)
            self.last = nn.Parameter(torch.ones(5, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ((self.left(x) + self.right(self.right(x)[:, :4])) @ self.last).sum()

    model = Two()
    found = count_flops(model, torch.randn(3, 4), {"left": [model.left], "right": [model.right]})
    one = 2 * 3 * 4 * 5
    assert found.by_branch == {"left": 2 * one, "right": (2 + 3) * one, OUTSIDE: 3 * 2 * 3 * 5 * 2}


def test_parts_that_are_not_called_themselves_have_what_is_in_them() -> None:
    """A list of layers, and a part whose layers the model calls; one layer in two parts goes to the part that calls."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.many = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.part = nn.ModuleDict({"inner": nn.Linear(4, 4)})
            self.calls = nn.Sequential(nn.Linear(4, 4), self.part["inner"])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.many:
                x = layer(x)
            return self.calls(self.part["inner"](x)).sum()

    model = Parts()
    found = count_flops(model, torch.randn(3, 4), {name: [child] for name, child in model.named_children()})
    one = 2 * 3 * 4 * 4
    assert found.by_branch == {"many": (2 + 3) * one, "part": 3 * one, "calls": 6 * one, OUTSIDE: 0}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_operators_without_a_formula_are_listed_but_views_are_not() -> None:
    """A softmax computes, a transpose does not; what is counted is not listed."""

    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.t().reshape(-1).view(3, 2) @ x.t()).softmax(-1).sum()

    found = counted(Mixed(), x=torch.randn(3, 2, requires_grad=True))
    assert (found.uncounted["_softmax"], found.uncounted["_softmax_backward_data"]) == (1, 1)
    assert not {"t", "view", "mm", "detach", "expand", "_unsafe_view"} & set(found.uncounted)


def test_without_autograd_operators_are_taken_apart() -> None:
    """A frozen part in inference mode is counted like any other: its forward alone."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.head = nn.Linear(4, 5), nn.Linear(5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                hidden = self.frozen(x)
            return self.head(hidden.clone())

    assert counted(Frozen(), x=torch.randn(3, 4)).total == 2 * 3 * 4 * 5 + 2 * (2 * 3 * 5)


class Block(nn.Module):
    """Two layers with attention between them; what follows the second needs its output."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.attend = SelfAttention(2, fused=fused)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.attend(self.first(x))).sin()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("how", ["full", "selective"])
def test_what_a_checkpoint_does_again(how: str, fused: bool) -> None:
    """`full` does the whole block's forward again, `selective` only products of which it keeps nothing: those of
    attention that is not fused. What is computed once is counted as without a checkpoint."""
    batch, tokens, depth = 3, 5, 2
    linear, attention = 2 * batch * tokens * 8 * 8, 4 * batch * tokens**2 * 8
    counts = {}
    for policy in ("none", how):
        layers = [Block(fused=fused) for _ in range(depth)]
        if policy != "none":
            checkpoint_blocks(layers, policy)
        counts[policy] = counted(*layers, x=torch.randn(batch, tokens, 8, requires_grad=True))
    assert counts[how].by_branch == counts["none"].by_branch
    assert counts["none"].total == 3 * depth * (2 * linear + attention)
    again = 2 * linear + attention if how == "full" else 0 if fused else attention
    assert counts[how].recomputed == depth * again


def test_a_checkpoint_stops_where_it_has_what_backward_needs() -> None:
    """The last product of a block, of which nothing is kept for backward, is not done again."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.last(self.first(x))

    block = Ends()
    checkpoint_blocks([block], "full")
    assert counted(block, x=torch.randn(3, 8, requires_grad=True)).recomputed == 2 * 3 * 8 * 8


def test_a_checkpoint_of_the_models_own_is_no_part_of_it() -> None:
    """What a model's own checkpoint does again is recomputation like ours, of either kind that torch has."""
    from torch.utils.checkpoint import checkpoint

    for reentrant in (False, True):

        class Own(nn.Module):
            def __init__(self, reentrant: bool) -> None:
                super().__init__()
                self.layer, self.reentrant = nn.Linear(8, 8), reentrant

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return checkpoint(lambda x: self.layer(x).sin(), x, use_reentrant=self.reentrant)  # type: ignore

        found = counted(Own(reentrant), x=torch.randn(3, 8, requires_grad=True))
        assert (found.total, found.recomputed) == (3 * 2 * 3 * 8 * 8, 2 * 3 * 8 * 8)


def by_hand(preset: str, samples: int, points: int, text: int) -> dict[str, int]:
    """Forward and backward of the built-in model by branch. A layer whose input needs no gradient is two products
    instead of three; the queries' places are embedded once for a whole batch."""
    c = config_from(preset)
    d, z, cells, queries = c.dim, c.lidar_channels, c.grid**2, c.queries**2
    patches = c.image_width * c.image_height // c.patch**2
    rays, places, point = 6 * (1 + 2 * 6), 5 * (1 + 2 * 6), 6 + 1 + 2 * 4
    tokens, source = text + 1, c.cameras * patches + text + 1
    mlp = 2 * d * 4 * d

    def self_block(count: int) -> int:
        return count * (4 * d * d + mlp) + 2 * count * count * d

    def cross_block(count: int, keys: int) -> int:
        return self_block(count) + count * 2 * d * d + keys * 2 * d * d + 2 * count * keys * d

    conv_block = 2 * cells * 9 * z * z
    camera = c.cameras * (
        2 * patches * (3 * c.patch**2 * d + rays * d)
        + 3 * (patches * d * d + c.camera_depth * self_block(patches))
    )  # fmt: skip
    lidar = 2 * points * point * z + 3 * (
        cells * (z + 1) * z + c.lidar_depth * conv_block + queries * z * c.stride**2 * d
    )
    written = 2 * 6 * d + 3 * c.text_depth * self_block(tokens)
    fusion = 3 * c.fusion_depth * cross_block(queries, source)
    heads = 3 * (queries * d * z * c.stride**2 + conv_block + cells * z * (3 + 8))
    once = queries * (2 * places * d + 3 * d * d)
    each = {"camera": camera, "lidar": lidar, "text": written, "fusion": fusion, "heads": heads}
    return {name: 2 * (samples * value + (once if name == "fusion" else 0)) for name, value in each.items()}


@pytest.mark.parametrize(
    ("preset", "samples", "points", "text"), [("nano", 3, 5120, 48), ("tiny", 2, 10240, 17), ("base", 1, 7168, 48)]
)
def test_the_built_in_model_by_branch(preset: str, samples: int, points: int, text: int) -> None:
    """Every branch is what its layers give by hand, at several sizes, padded and not."""
    with FakeTensorMode():
        model = build_model(preset)
        batch = tree_map(lambda leaf: torch.empty(tuple(leaf.shape), dtype=leaf.dtype), example_batch(samples, preset))
        batch |= {"points": torch.empty(samples, points, 4), "points_mask": torch.empty(samples, points) > 0}
        batch["tokens"] = batch["tokens"][:, :text]
        found = count_flops(model, batch, branches(model))
    assert found.by_branch == {**by_hand(preset, samples, points, text), OUTSIDE: 0}


def test_full_checkpointing_of_the_built_in_model() -> None:
    """Its blocks' forward is done again but for the last layer of each, which only adds to the stream."""
    c, samples = config_from("nano"), 2
    found: dict[str, Any] = {}
    for how in ("none", "full"):
        with FakeTensorMode():
            model = build_model("nano")
            if how == "full":
                checkpoint_blocks(blocks(model), how)
            batch = tree_map(lambda leaf: torch.empty(tuple(leaf.shape), dtype=leaf.dtype), example_batch(samples))
            batch["images"] = batch["images"][..., : c.image_height, : c.image_width]
            found[how] = count_flops(model, batch, branches(model))
    assert found["full"].by_branch == found["none"].by_branch
    d, z, cells, queries = c.dim, c.lidar_channels, c.grid**2, c.queries**2
    patches = c.image_width * c.image_height // c.patch**2
    source = c.cameras * patches + 49

    def block(tokens: int) -> int:  # all but the second layer of its perceptron
        return tokens * 8 * d * d + 2 * tokens * tokens * d

    cross = queries * 2 * d * d + source * 2 * d * d + 2 * queries * source * d
    again = c.cameras * c.camera_depth * block(patches) + c.text_depth * block(49)
    again += c.fusion_depth * (block(queries) + cross) + (c.lidar_depth + 1) * cells * 9 * z * z
    assert found["full"].recomputed == 2 * samples * again
