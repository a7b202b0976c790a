"""The model as every strategy gets it: seeded weights, then precision, checkpointing, compilation, in this order.

Checkpointing lies inside compilation, so that the compiler sees what may be recomputed; both lie inside what a
strategy wraps, so that gathering and reducing happen outside of them.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..models.contract import ModelSource
from ..models.errors import ModelError
from .precision import PRECISIONS, apply_precision
from .recompute import checkpoint_blocks
from .setting import Setting
from .strategies._law import ModelShape, ParameterShape

# What fills a tensor in place, of torch.nn.init and of tensors themselves, by a generator or with a constant.
_FILLS = frozenset(
    {"normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_",
     "orthogonal_", "random_", "bernoulli_", "exponential_", "zeros_", "ones_", "constant_", "zero_", "fill_"}
)  # fmt: skip


def build(source: ModelSource, setting: Setting, seed: int) -> tuple[nn.Module, list[nn.Module]]:
    """The model and its blocks on the CPU (or the current default device), ready to be wrapped.

    Weights are drawn from `seed`, alike on every rank, by whichever global generator. Raises ModelError where the model
    cannot be had so.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    model = source.build()
    model.train()
    blocks = source.blocks(model)
    if not blocks and (wanted := _needs_blocks(setting)):
        raise ModelError(
            f"{wanted} works block by block, and {source.name} shows none: no class repeats in a ModuleList or "
            "Sequential; define blocks(model) in the model's file (see docs/bring-your-own-model.md)"
        )
    prepare(model, blocks, source.name, setting)
    return model, blocks


def unfilled() -> TorchFunctionMode:
    """Within, weights are made and not filled: for tensors without data, of which torch would import its compiler (2 s)
    to fill them with nothing."""
    return _Unfilled()


class _Unfilled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _FILLS:
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, torch.Tensor) and filled.is_meta:
                return filled
        return func(*args, **kwargs)


def prepare(model: nn.Module, blocks: Sequence[nn.Module], name: str, setting: Setting) -> None:
    """Apply precision, checkpointing and compilation to `model` in place."""
    apply_precision(model, name, PRECISIONS[setting.precision], setting.device)
    if setting.checkpointing != "none":
        checkpoint_blocks(blocks, setting.checkpointing, compiled=setting.compile)
    if setting.compile:
        for block in blocks:
            block.forward = torch.compile(block.forward)


def shape_of(model: nn.Module, blocks: Sequence[nn.Module]) -> ModelShape:
    """The shape that laws are evaluated at."""
    block_of = {id(module): index for index, block in enumerate(blocks) for module in block.modules()}
    holders: defaultdict[int, list[int | None]] = defaultdict(list)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holder = block_of.get(id(module))
            if holder not in holders[id(parameter)]:
                holders[id(parameter)].append(holder)
    buffers = list(model.buffers())
    real = [buffer for buffer in buffers if buffer.is_floating_point()]
    return ModelShape(
        parameters=tuple(
            ParameterShape(tuple(p.shape), holders[id(p)][0], p.requires_grad, holders=len(holders[id(p)]))
            for p in model.parameters()
        ),
        float_buffer_elements=sum(buffer.numel() for buffer in real),
        float_buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in real),
        other_buffer_bytes=sum(b.numel() * b.element_size() for b in buffers if not b.is_floating_point()),
    )


def fingerprint(model: nn.Module) -> int:
    """A checksum of every bit of the weights and buffers, which are on the CPU: equal on ranks that start alike."""
    found = 0
    for tensor in (*model.parameters(), *model.buffers()):
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        found = zlib.crc32(memoryview(content), found)  # pyright: ignore[reportArgumentType]
    return found


def _needs_blocks(setting: Setting) -> str | None:
    if setting.checkpointing != "none":
        return f"--checkpointing {setting.checkpointing}"
    return "--compile" if setting.compile else None
