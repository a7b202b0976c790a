"""The optimizer, built in one place with every constant written out, for every strategy alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from .setting import Setting


def make_optimizer(parameters: Sequence[torch.nn.Parameter], setting: Setting) -> torch.optim.Optimizer:
    """AdamW or SGD over `parameters`, with the fused kernel, which CPU and CUDA both have.

    SGD over DTensors is the exception: torch has no rule to run its fused kernel on shards.
    """
    if setting.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=setting.lr, fused=True, **setting.hyperparameters)
    whole = not any(isinstance(parameter, DTensor) for parameter in parameters)
    return torch.optim.SGD(parameters, lr=setting.lr, fused=whole, foreach=not whole, **setting.hyperparameters)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD its momentum before the first step, for loss scaling: a first step that is skipped leaves the fused
    kernel's as uninitialised memory. From zero the first momentum is the first gradient, as torch defines it."""
    if isinstance(optimizer, torch.optim.SGD):
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


class MasterWeights:
    """fp32 copies of parameters that are kept in a shorter dtype: the optimizer updates `copies`."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self.copies = [torch.nn.Parameter(parameter.detach().float()) for parameter in parameters]

    def take_gradients(self) -> None:
        """Move each parameter's gradient to its copy, widened; the short one is freed."""
        for parameter, copy in zip(self._parameters, self.copies, strict=True):
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the copies into the parameters."""
        for parameter, copy in zip(self._parameters, self.copies, strict=True):
            parameter.copy_(copy)
