"""Precision: which dtype parameters, compute, gradients, reduction and master copies have under each name.

Autocast is put around the model's own forward, inside whatever wrapper a strategy adds, so that it means the same
under every strategy. (DeepSpeed's own autocast would also send gradients in bf16; with autocast outside its engine
it switches it off.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..models.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The five dtypes of a training run."""

    name: str
    param: str = "fp32"
    compute: str = "fp32"
    grad: str = "fp32"
    reduce: str = "fp32"
    master: str = "fp32"


PRECISIONS = {
    "fp32": Precision(name="fp32"),
    "bf16": Precision(name="bf16", compute="bf16"),
}


def wrap_forward(model: nn.Module, name: str, precision: Precision, device: str) -> None:
    """Make `model`'s forward compute as `precision` says, and check that what it returns is a scalar loss.

    Also fixes fp32 to be fp32 on CUDA, where convolutions would take TF32 by default.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    forward = model.forward
    autocast = precision.compute == "bf16"

    @functools.wraps(forward)
    def checked(batch: Any, **options: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            loss = forward(batch, **options)
        if options:  # our own model, asked for its outputs in an evaluation
            return loss
        if not isinstance(loss, torch.Tensor) or loss.dim() or not loss.dtype.is_floating_point:
            shape = (
                f"a {loss.dtype} tensor of shape {tuple(loss.shape)}"
                if isinstance(loss, torch.Tensor)
                else f"a {type(loss).__name__}"
            )
            raise ModelError(
                f"{name}: forward(batch) returned {shape}, must return a scalar floating-point loss (say loss.mean())"
            )
        return loss

    model.forward = checked
