"""Training with a torch optimizer over the model's own parameters, whole or DTensors: `single`, `ddp` and `fsdp2`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every torch.optim imports it when made: here ranks are forked with it
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..optimizer import MasterWeights, make_optimizer, start_momentum
from ..precision import PRECISIONS
from ..setting import Setting
from ._contract import Gradients, Sharded


class NativeSharded(Sharded):
    """`call` runs the wrapped model; `set_sync` says before each forward whether its gradients are to be reduced.

    `replicas` ranks hold each gradient alike: all of them, or one where the parameters are sharded.
    """

    def __init__(
        self,
        module: nn.Module,
        setting: Setting,
        call: Callable[[Any], torch.Tensor],
        *,
        replicas: int = 1,
        set_sync: Callable[[bool], None] = lambda sync: None,
    ) -> None:
        super().__init__(module, setting)
        self._call = call
        self._replicas = replicas
        self._set_sync = set_sync
        self._trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        precision = PRECISIONS[setting.precision]
        self._masters = MasterWeights(self._trainable) if precision.master != precision.param else None
        self._updated = self._masters.copies if self._masters else self._trainable
        self._optimizer = make_optimizer(self._updated, setting)
        # Disabled it hands everything through, so that there is one way through the step. It reads nothing back
        # from the device: the fused optimizers skip an update by a flag in device memory.
        self._scaler = torch.amp.GradScaler(setting.device, enabled=precision.scales_loss)
        if precision.scales_loss:
            start_momentum(self._optimizer)
        self._skipped: torch.Tensor | bool = False

    def forward(self, batch: Any, last: bool) -> torch.Tensor:
        # DDP reads its flag in forward, so it is set before and not around backward alone.
        self._set_sync(last or self.setting.accumulation_sync == "each")
        return self._call(batch)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self._scaler.scale(loss / self.setting.accumulation).backward()

    def step(self, last: bool) -> None:
        if not last:
            return
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._optimizer)
            self._skipped = any_of(self._scaler._found_inf_per_device(self._optimizer).values())
        if self._masters:
            self._masters.take_gradients()
        if self.setting.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._updated, self.setting.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._masters:
            self._masters.give_weights()
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def gradients(self) -> Gradients:
        parts = [local(parameter.grad) for parameter in self._trainable if parameter.grad is not None]
        scale = self._scaler.scale(torch.ones((), device=self.setting.device)) if self._scaler.is_enabled() else 1.0
        return Gradients(parts, self._replicas, scale)

    @property
    def skipped(self) -> torch.Tensor | bool:
        return self._skipped

    def reshard(self) -> None:
        if isinstance(self.module, FSDPModule):
            self.module.reshard()

    def parameters(self) -> Iterator[torch.Tensor]:
        return (local(parameter) for parameter in self.module.parameters())

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        if self._masters:
            yield from map(local, self._masters.copies)
        for state in self._optimizer.state.values():
            yield from (local(value) for value in state.values() if isinstance(value, torch.Tensor))

    def save(self, folder: Path) -> None:
        names = [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]
        state = self._optimizer.state_dict()["state"]
        content = {
            "model": get_model_state_dict(self.module),
            "optimizer": {name: state.get(index, {}) for index, name in enumerate(names)},
            "master": dict(zip(names, self._masters.copies, strict=True)) if self._masters else {},
            "scaler": self._scaler.state_dict(),
        }
        save(content, checkpoint_id=folder)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def any_of(flags: Iterable[torch.Tensor]) -> torch.Tensor:
    """1.0 on the device if any of `flags` is set, else 0.0."""
    return torch.stack([local(flag).reshape(()) for flag in flags]).amax()
