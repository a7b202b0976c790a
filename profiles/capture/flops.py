"""Floating-point operations of a model's forward and backward, counted from the shapes that its operators see.

A multiply-add counts as two. Counted are matrix products, convolutions and attention, by the formulas of
torch.utils.flop_counter but for those below; what else ran is listed by name. Nothing is timed, and nothing need be
computed: on fake tensors (torch._subclasses.fake_tensor) a model of any size is counted without its memory.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

aten = torch.ops.aten
Key = TypeVar("Key", bound=Hashable)
OUTSIDE = "unattributed"
"""The branch of operations that belong to none, such as a loss computed by the model's own forward."""


@dataclass(frozen=True)
class Flops:
    """One forward and backward. `by_branch` is without what a checkpoint computed again, which is `recomputed`.
    `uncounted` has the calls of operators that have no formula, by name."""

    by_branch: Mapping[str, int]
    recomputed: int
    uncounted: Mapping[str, int]

    @property
    def total(self) -> int:
        """Forward and backward, each operation once."""
        return sum(self.by_branch.values())


def mean_flops(counted: Mapping[Key, Flops], times: Mapping[Key, int]) -> Flops:
    """The mean over micro-batches, of which each of `counted` stands for so many."""
    count = sum(times.values())

    def mean(of: Callable[[Flops], int]) -> int:
        return round(sum(of(flops) * times[key] for key, flops in counted.items()) / count)

    names = {name: None for flops in counted.values() for name in flops.by_branch}
    by_branch = {name: mean(lambda flops, name=name: flops.by_branch.get(name, 0)) for name in names}
    return Flops(by_branch, mean(lambda flops: flops.recomputed), {})


def count_flops(model: nn.Module, batch: Any, branches: Mapping[str, Sequence[nn.Module]]) -> Flops:
    """Count `model(batch)`, a scalar loss, and its backward, by the branch in whose modules an operation ran.

    Gradients are dropped afterwards. Raises what the model's code raises.
    """
    counter = _Counter(branches)
    try:
        # On CUDA backward would run on a thread of its own, with numbers of its own for the nodes that it makes again.
        with torch.autograd.set_multithreading_enabled(False), counter:
            loss = model(batch)
            counter.in_backward = True
            loss.backward()
    finally:
        counter.close()
        model.zero_grad(set_to_none=True)
    return Flops(dict(counter.by_branch), counter.recomputed, dict(counter.uncounted.most_common()))


class _Counter(TorchDispatchMode):
    """Sees every operator below autograd, in forward and backward.

    An operation of backward belongs to the branch in which the node that runs it was made: nodes are numbered as they
    are made, so a branch is a range of numbers. One that runs in backward with gradients enabled is a recomputation.
    """

    def __init__(self, branches: Mapping[str, Sequence[nn.Module]]) -> None:
        super().__init__()
        self.in_backward = False
        self.by_branch: dict[str, int] = dict.fromkeys([*branches, OUTSIDE], 0)
        self.recomputed = 0
        self.uncounted: Counter[str] = Counter()
        self._inside: list[str] = []
        # From each number on, the branch of the nodes that are made.
        self._numbers, self._owners = [0], [OUTSIDE]
        self._hooks: list[RemovableHandle] = []
        # All that is inside: lists of modules are never called themselves, nor are parts whose parts the model calls.
        owner: dict[nn.Module, str] = {}
        for name, parts in branches.items():
            for part in parts:
                owner |= {module: name for module in part.modules() if module not in owner}
        for module, name in owner.items():
            self._hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            self._hooks.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))

    def close(self) -> None:
        """Leave the modules as they were."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, name: str) -> None:
        # A part that two branches share belongs to the one that calls it.
        name = self._inside[-1] if self._inside else name
        self._inside.append(name)
        self._from_now_on(name)

    def _leave(self) -> None:
        self._inside.pop()
        self._from_now_on(self._inside[-1] if self._inside else OUTSIDE)

    def _from_now_on(self, owner: str) -> None:
        self._numbers.append(torch._C._autograd._get_sequence_nr())  # pyright: ignore[reportAttributeAccessIssue]
        self._owners.append(owner)

    def _branch(self) -> str:
        if self._inside:
            return self._inside[-1]
        node = torch._C._current_autograd_node() if self.in_backward else None
        if node is None:
            return OUTSIDE
        return self._owners[bisect.bisect_right(self._numbers, node._sequence_nr()) - 1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view or func in _FREE or func.namespace in _NOTHING_COMPUTED:
            return func(*args, **kwargs)
        formula = _OWN.get(func.overloadpacket) or flop_registry.get(func.overloadpacket)
        if formula is None:
            # Without autograd (inference mode) operators arrive that are made of others.
            with self:
                made_of = func.decompose(*args, **kwargs)
            if made_of is not NotImplemented:
                return made_of
        result = func(*args, **kwargs)
        if formula is None:
            self.uncounted[str(func.overloadpacket).removeprefix("aten.")] += 1
        else:
            self._add(formula(*args, **kwargs, out_val=result))
        return result

    def _add(self, flops: int) -> None:
        if self.in_backward and torch.is_grad_enabled():
            self.recomputed += flops
        else:
            self.by_branch[self._branch()] += flops


def _convolution_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Each of the gradients of input and weight takes the products of the forward once more. torch's own formula
    leaves the groups out of the weight's."""
    places = (x if transposed else grad).shape[2:]
    forward = 2 * x.shape[0] * math.prod(places) * math.prod(weight.shape)
    return forward * sum(output_mask[:2])


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    """Scores and their product with the values, all of them: a causal kernel that skips half is not told apart."""
    *batch, targets, width = query.shape
    return 2 * math.prod(batch) * targets * key.shape[-2] * (width + value.shape[-1])


def _attention_backward(
    grad: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> int:
    """Two products for each of the forward's. That a fused kernel computes the scores again is its own affair."""
    return 2 * _attention(query, key, value)


def _packets(*names: str) -> list[Any]:
    """Those of aten's operators that this torch has."""
    return [getattr(aten, name) for name in names if hasattr(aten, name)]


_FUSED = tuple(
    f"_scaled_dot_product_{kernel}"
    for kernel in (
        "flash_attention",
        "flash_attention_for_cpu",
        "efficient_attention",
        "cudnn_attention",
        "fused_attention_overrideable",
    )
)
_OWN: dict[Any, Callable[..., int]] = {
    **dict.fromkeys(_packets(*_FUSED), _attention),
    **dict.fromkeys(_packets(*(f"{name}_backward" for name in _FUSED)), _attention_backward),
    aten.convolution_backward: _convolution_backward,
}
_NOTHING_COMPUTED = ("prim", "profiler")
# No view by their schema, but nothing is computed or moved either.
_FREE = frozenset(
    {
        aten._unsafe_view.default,
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.empty_strided.default,
        aten.new_empty.default,
        aten.new_empty_strided.default,
        aten.promote_types.default,
    }
)
