"""The optimizer, built in one place with every constant written out, for every strategy alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .strategies._contract import Setting


def make_optimizer(parameters: Iterable[torch.nn.Parameter], setting: Setting) -> torch.optim.Optimizer:
    """AdamW or SGD over `parameters`, with the fused kernel, which CPU and CUDA both have."""
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[setting.optimizer](parameters, lr=setting.lr, fused=True, **setting.hyperparameters)
