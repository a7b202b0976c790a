"""Training where each rank holds the whole model: shared by `single` and `ddp`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from ..optimizer import make_optimizer
from ._contract import Setting, Sharded


class Replicated(Sharded):
    """`call` is the module to call in forward: the model itself, or what wraps it."""

    def __init__(
        self,
        module: nn.Module,
        setting: Setting,
        call: Callable[[Any], torch.Tensor],
        set_sync: Callable[[bool], None] = lambda last: None,
    ) -> None:
        super().__init__(module, setting)
        self._call = call
        self._set_sync = set_sync
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = make_optimizer(self._parameters, setting)

    def forward(self, batch: Any, last: bool) -> torch.Tensor:
        # DDP reads its flag in forward, so it is set before and not around backward alone.
        self._set_sync(last)
        return self._call(batch)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        (loss / self.setting.accumulation).backward()

    def step(self, last: bool) -> None:
        if not last:
            return
        if self.setting.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.setting.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def gradients(self) -> tuple[list[torch.Tensor], int]:
        grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return grads, self.setting.world_size

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        for state in self._optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    def save(self, folder: Path) -> None:
        model, optimizer = get_state_dict(self.module, self._optimizer)
        save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
