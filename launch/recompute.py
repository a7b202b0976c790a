"""Activation checkpointing: which of a block's activations are kept for backward, and which are computed again.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; `selective` decides by operation, as
torch.utils.checkpoint.create_selective_checkpoint_contexts lets it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten
# Operations with much to compute for the bytes they leave behind: `selective` keeps what these return. Batched products
# are not among them: where attention is not fused, they return its scores, which grow with the square of its length.
KEPT = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.linear.default,
        aten.convolution.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
)


_off = False


@contextlib.contextmanager
def nothing_recomputed() -> Iterator[None]:
    """Within, forwards keep all of their activations."""
    global _off
    _off = True
    try:
        yield
    finally:
        _off = False


def checkpoint_blocks(blocks: Sequence[nn.Module], how: str) -> None:
    """Make each of `blocks` compute its activations again in backward: all (`full`), or the cheap ones (`selective`).

    The module tree and its names stay as they are; hooks of a wrapper around a block run once, outside.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_the_expensive)
    for block in blocks:
        block.forward = _checkpointed(block.forward, options)


def _checkpointed(forward: Any, options: dict[str, Any]) -> Any:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if _off:
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, **options, **kwargs)

    return run


def _keep_the_expensive(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
