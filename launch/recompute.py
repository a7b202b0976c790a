"""Activation checkpointing: which of a block's activations are kept for backward, and which are computed again.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; `selective` decides by operation, as
torch.utils.checkpoint.create_selective_checkpoint_contexts lets it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
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


# What is entered around each recomputation of a block, where somebody times it.
_listener: AbstractContextManager[None] | None = None


def timed_by(listener: AbstractContextManager[None] | None) -> None:
    """Enter `listener` around every recomputation from now on; None for nothing. Not seen in compiled blocks."""
    global _listener
    _listener = listener


@contextlib.contextmanager
def heard_by(listener: AbstractContextManager[None]) -> Iterator[None]:
    """Within, `listener` is entered in the place of the one that times."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def _contexts(inner: Callable[[], tuple[Any, Any]] | None) -> tuple[Any, Any]:
    """What torch enters around a block's forward, and around its recomputation."""
    forward, again = inner() if inner is not None else (contextlib.nullcontext(), contextlib.nullcontext())
    return forward, _Timed(again)


class _Timed:
    """The context of a recomputation, within the listener's."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __enter__(self) -> None:
        if _listener is not None:
            _listener.__enter__()
        self._inner.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        # torch leaves a recomputation by an exception as soon as it has what it needs: that ends it as well.
        suppressed = self._inner.__exit__(kind, error, trace)
        if _listener is not None:
            _listener.__exit__(None, None, None)
        return suppressed


def checkpoint_blocks(blocks: Sequence[nn.Module], how: str, *, compiled: bool = False) -> None:
    """Make each of `blocks` compute its activations again in backward: all (`full`), or the cheap ones (`selective`).
    torch's compiler takes no other context for that than its own: `compiled` blocks are not timed.

    The module tree and its names stay as they are; hooks of a wrapper around a block run once, outside.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    selective = functools.partial(create_selective_checkpoint_contexts, _keep_the_expensive)
    if compiled:
        options |= {"context_fn": selective} if how == "selective" else {}
    else:
        options["context_fn"] = functools.partial(_contexts, selective if how == "selective" else None)
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
