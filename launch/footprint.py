"""What one micro-batch allocates, followed without allocating it: on fake tensors, which have sizes and no memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..models.contract import ModelSource
from .build import build, shape_of
from .precision import PRECISIONS
from .setting import Setting
from .strategies._contract import Strategy
from .strategies._law import Law, ModelShape

# Three sizes tell a quadratic: a loss that compares samples with each other grows so. One sample may take a path of its
# own (a squeezed dimension).
SIZES = (2, 3, 4)
FREED = -1


class UntoldError(Exception):
    """Why what a batch needs cannot be told."""


@dataclass(frozen=True)
class Footprint:
    """What a rank allocates for a micro-batch, at any size.

    `events` is the order of allocations (bytes at each of SIZES) and releases (FREED) of a forward and its backward,
    by number of the allocation. Parameters and the batch are not in it; gradients are where `law` has them whole.
    """

    events: Sequence[tuple[int, tuple[int, ...]]]
    batches: tuple[int, ...]
    shape: ModelShape
    law: Law

    def batch_bytes(self, size: int) -> int:
        return _at(size, self.batches)

    def peak_bytes(self, size: int, charged: Callable[[int], float] = float) -> float:
        """The most that is alive at once with `size` samples, where the allocator takes `charged(bytes)` for each."""
        held: dict[int, float] = {}
        alive = peak = 0.0
        for number, sizes in self.events:
            if sizes[0] == FREED:
                alive -= held.pop(number)
            else:
                held[number] = charged(_at(size, sizes))
                alive += held[number]
                peak = max(peak, alive)
        return peak


def measure(source: ModelSource, setting: Setting, seed: int, strategy: Strategy, batch: Any) -> Footprint:
    """Follow a forward and backward of `source`'s model as `setting` prepares it, on batches cut like `batch`.

    `batch` is one of `setting.micro_batch` samples; where it is None or cannot be cut, the source's example batches
    are taken. Raises UntoldError, or what the model's code raises on tensors without data.
    """
    examples = [_shapes_of(batch, setting.micro_batch, size) or source.example_batch(size) for size in SIZES]
    # Fake parameters cannot be cast: where they train in bf16, compute alone is followed in bf16, which takes no less.
    short = PRECISIONS[setting.precision].param == "bf16"
    eager = replace(setting, compile=False, precision="bf16" if short else setting.precision)
    # The model is built where it trains: parameters that are fake cannot be moved.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(setting.device):
        model, blocks = build(source, eager, seed)
        shape = shape_of(model, blocks)
        law = strategy.law(shape, setting)
        if law.gradients == "sharded":
            _release_gradients(model)
        fakes = [tree_map(lambda leaf: _fake(leaf, setting.device), example) for example in examples]
        runs = [_follow(model, fake, passes=min(2, setting.accumulation)) for fake in fakes]
    if len({tuple((number, size == FREED) for number, size in run) for run in runs}) > 1:
        raise UntoldError("the model computes in another order at another batch size")
    events = [(run[0][0], tuple(size for _, size in run)) for run in zip(*runs, strict=True)]
    return Footprint(events, tuple(map(_bytes, fakes)), shape, law)


class _Follower(TorchDispatchMode):
    """Records when storages come and go. `known` storages are not counted, nor are views of them."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self._alive: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in known}
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, number = storage._cdata, self._count
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.events.append((number, FREED))

        # A storage's Python object lives as long as the storage: graphs that keep it are in C++.
        self._alive[key] = weakref.ref(storage, gone)
        self._count += 1
        self.events.append((number, storage.nbytes()))


def _follow(model: nn.Module, batch: Any, passes: int) -> list[tuple[int, int]]:
    """The events of `passes` micro-batches, the later of which add to the gradients of the first."""
    follower = _Follower([*model.parameters(), *model.buffers(), *tensors(batch)])
    # Storages must go by their last reference, not when the collector comes by: runs are compared.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with follower:
            for _ in range(passes):
                loss = model(batch)
                loss.backward()
                del loss
        return list(follower.events)
    finally:
        model.zero_grad(set_to_none=True)
        if collecting:
            gc.enable()


def _release_gradients(model: nn.Module) -> None:
    """Drop each gradient when it is ready, as a strategy does that keeps a shard of it."""

    def release(parameter: torch.Tensor) -> None:
        parameter.grad = None

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(release)


@dataclass(frozen=True)
class _Sized:
    """A tensor to be made: only its shape and dtype count."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _shapes_of(batch: Any, micro_batch: int, size: int) -> Any:
    """Shapes of `batch` with `size` samples for `micro_batch`; None where its tensors do not begin with them."""
    found = tensors(batch)
    if not found or any(tensor.dim() and tensor.shape[0] != micro_batch for tensor in found):
        return None

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return _Sized((size, *leaf.shape[1:]) if leaf.dim() else (), leaf.dtype)

    return tree_map(cut, batch)


def _fake(leaf: Any, device: str) -> Any:
    if isinstance(leaf, _Sized | torch.Tensor):
        return torch.empty(tuple(leaf.shape), dtype=leaf.dtype, device=device)
    return leaf


def tensors(nest: Any) -> list[torch.Tensor]:
    """The tensors in a nest of containers."""
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, torch.Tensor)]


def _bytes(nest: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors(nest))


def _at(size: int, values: tuple[int, ...]) -> int:
    """The quadratic through `values` at SIZES, at `size`: Newton's forward differences."""
    first, second, third = values
    ahead = size - SIZES[0]
    return first + ahead * (second - first) + ahead * (ahead - 1) // 2 * (third - 2 * second + first)
