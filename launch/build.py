"""The model as every strategy gets it: seeded weights, then precision, checkpointing, compilation, in this order.

Checkpointing lies inside compilation, so that the compiler sees what may be recomputed; both lie inside what a
strategy wraps, so that gathering and reducing happen outside of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..models.contract import ModelSource
from ..models.errors import ModelError
from .precision import PRECISIONS, apply_precision
from .recompute import checkpoint_blocks
from .setting import Setting
from .strategies._law import ModelShape, ParameterShape


def build(source: ModelSource, setting: Setting, seed: int) -> tuple[nn.Module, list[nn.Module]]:
    """The model and its blocks on the CPU (or the current default device), ready to be wrapped.

    Weights are drawn from `seed`, alike on every rank. Raises ModelError where the model cannot be had so.
    """
    torch.manual_seed(seed)
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


def prepare(model: nn.Module, blocks: Sequence[nn.Module], name: str, setting: Setting) -> None:
    """Apply precision, checkpointing and compilation to `model` in place."""
    apply_precision(model, name, PRECISIONS[setting.precision], setting.device)
    if setting.checkpointing != "none":
        checkpoint_blocks(blocks, setting.checkpointing)
    if setting.compile:
        for block in blocks:
            block.forward = torch.compile(block.forward)


def shape_of(model: nn.Module, blocks: Sequence[nn.Module]) -> ModelShape:
    """The shape that laws are evaluated at."""
    block_of = {id(p): index for index, block in enumerate(blocks) for p in block.parameters()}
    parameters = tuple(ParameterShape(tuple(p.shape), block_of.get(id(p)), p.requires_grad) for p in model.parameters())
    buffers = list(model.buffers())
    return ModelShape(
        parameters=parameters,
        float_buffer_elements=sum(buffer.numel() for buffer in buffers if buffer.is_floating_point()),
        other_buffer_bytes=sum(b.numel() * b.element_size() for b in buffers if not b.is_floating_point()),
    )


def _needs_blocks(setting: Setting) -> str | None:
    if setting.checkpointing != "none":
        return f"--checkpointing {setting.checkpointing}"
    return "--compile" if setting.compile else None
