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

DTYPE_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The five dtypes of a training run. tf32 is fp32 in memory, multiplied with 10 bits of mantissa."""

    name: str
    param: str = "fp32"
    compute: str = "fp32"
    grad: str = "fp32"
    reduce: str = "fp32"
    master: str = "fp32"

    @property
    def scales_loss(self) -> bool:
        """Whether gradients need dynamic loss scaling: fp16's smallest normal number is 6e-5."""
        return self.compute == "fp16"


PRECISIONS = {
    "fp32": Precision(name="fp32"),
    "tf32": Precision(name="tf32", compute="tf32"),
    "bf16": Precision(name="bf16", compute="bf16"),
    "bf16-params": Precision(name="bf16-params", param="bf16", compute="bf16", grad="bf16", reduce="bf16"),
    "fp16": Precision(name="fp16", compute="fp16"),
}


def unsupported_precision(name: str, device: str) -> str | None:
    """Why no strategy can train in precision `name` on `device`; None if some can."""
    if name == "tf32" and device == "cpu":
        return "tf32 is a mode of CUDA tensor cores, on CPU it would silently be fp32: use fp32 or bf16"
    return None


def apply_precision(model: nn.Module, name: str, precision: Precision, device: str) -> None:
    """Give `model` its parameters' dtype, and make its forward compute as `precision` says.

    Also checks that the model's parameters are fp32 when built, and that forward returns a scalar loss. On CUDA,
    fp32 is fp32: convolutions would take TF32 by default.
    """
    import torch

    odd = {str(parameter.dtype) for parameter in model.parameters() if parameter.dtype != torch.float32}
    if odd:
        raise ModelError(
            f"{name}: build_model returned parameters in {', '.join(sorted(odd))}, must build them in torch.float32; "
            "--precision bf16-params trains with bf16 weights"
        )
    tf32 = precision.compute == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    if precision.param == "bf16":
        model.to(torch.bfloat16)
    compute = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision.compute)
    forward = model.forward

    @functools.wraps(forward)
    def checked(batch: Any, **options: Any) -> Any:
        # Autocast's cache would keep the short copy of a weight that is used twice: a block that is computed again
        # would not find it, and the gradients of both uses would be added up in the short dtype.
        with torch.autocast(device, dtype=compute, enabled=compute is not None, cache_enabled=False):
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
