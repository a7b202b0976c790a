"""What a strategy is: its law, what it refuses, and how it wraps a model for training.

Adding a strategy is adding one file here with an object `strategy`. The planner, the run, the tests and the
reports find it on disk. Nothing in this package imports torch before `shard` is called.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..setting import Setting
from ._law import Law, ModelShape

if TYPE_CHECKING:
    import torch
    from torch import nn

Sync = Literal["each", "last"]
Knob = Literal["bucket_mb", "overlap"]
Engine = Literal["native", "accelerate"]


class Strategy(abc.ABC):
    """A way to share a model's state and work among ranks.

    `accumulation_syncs` are the moments at which it can reduce gradients while micro-batches accumulate, the default
    first; `knobs` are the communication options that it obeys; `engines` can run it.
    """

    summary: ClassVar[str]
    accumulation_syncs: ClassVar[tuple[Sync, ...]] = ("last", "each")
    knobs: ClassVar[frozenset[Knob]] = frozenset()
    engines: ClassVar[tuple[Engine, ...]] = ("native",)

    def packages(self, setting: Setting) -> tuple[str, ...]:
        """The packages besides torch that a run needs, by import name."""
        return ("accelerate",) if setting.engine == "accelerate" else ()

    def default_overlap(self, device: str) -> bool:
        """Whether communication overlaps with computation unless asked otherwise, for a strategy with that knob."""
        return True

    def unsupported(self, setting: Setting) -> str | None:
        """Why this strategy cannot run so, or would silently run otherwise, with the way out; None if it can."""
        return None

    def unsupported_model(self, model: ModelShape) -> str | None:
        """Why this strategy cannot train a model of that shape, with the way out; None if it can."""
        return None

    @abc.abstractmethod
    def law(self, model: ModelShape, setting: Setting) -> Law:
        """What each rank holds and sends. No torch."""

    @abc.abstractmethod
    def preload(self, setting: Setting) -> None:
        """Import the libraries that `shard` uses, without touching a device: done once before ranks are forked."""

    @abc.abstractmethod
    def shard(self, model: nn.Module, setting: Setting, blocks: Sequence[nn.Module]) -> Sharded:
        """Wrap `model`, whose parameters are on their device and equal on all ranks. The process group exists.

        `blocks` are the model's repeated units in the order of forward, for strategies that shard by unit.
        """


@dataclass(frozen=True)
class Gradients:
    """The reduced gradients that a rank holds before clipping: `parts`, each held alike by `replicas` ranks.

    They are `scale` times the true ones, the factor of loss scaling; 1 without it.
    """

    parts: list[torch.Tensor]
    replicas: int
    scale: torch.Tensor | float = 1.0


class Sharded(abc.ABC):
    """A model under a strategy: owns loss scaling, accumulation boundaries, clipping and the optimizer.

    In a step of k micro-batches the loop calls forward, backward and step k times; `last` is true at the k-th.
    """

    def __init__(self, module: nn.Module, setting: Setting) -> None:
        self.module = module
        self.setting = setting

    @abc.abstractmethod
    def forward(self, batch: Any, last: bool) -> torch.Tensor:
        """The loss of one micro-batch on this rank, unscaled: a scalar."""

    @abc.abstractmethod
    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add this micro-batch's share of the gradient of the mean loss over ranks and micro-batches."""

    @abc.abstractmethod
    def step(self, last: bool) -> None:
        """Clip, update and clear the gradients when `last`; what the library asks for otherwise."""

    @property
    @abc.abstractmethod
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups; the loop sets their `lr`."""

    @property
    @abc.abstractmethod
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """What updates this rank's share of the parameters, under whatever wraps it."""

    @abc.abstractmethod
    def gradients(self) -> Gradients:
        """After the last backward and before the step: every trainable element once over all ranks (or alike on
        `replicas` of them)."""

    @property
    def skipped(self) -> torch.Tensor | bool:
        """Whether the last step left the weights alone because a scaled gradient overflowed; read without waiting."""
        return False

    @abc.abstractmethod
    def parameters(self) -> Iterator[torch.Tensor]:
        """Every tensor of parameters that stays on this rank between steps."""

    @abc.abstractmethod
    def optimizer_state(self) -> Iterator[torch.Tensor]:
        """Every tensor the optimizer keeps on this rank, master copies of the parameters included."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint into `folder`. Called on all ranks together."""

    def reshard(self) -> None:  # noqa: B027
        """Give up the parameters that a forward without a backward (an evaluation) has left gathered."""

    def close(self) -> None:  # noqa: B027 (most have nothing to take back)
        """Take back what a library keeps of this model in the process: for those that train another one after it."""

    def buckets(self) -> Iterator[torch.Tensor]:
        """What holds gradients on their way into a reduction, apart from model state, as far as it is there now."""
        return iter(())

    def state(self) -> Mapping[str, list[torch.Tensor]]:
        """The tensors of model state that are alive on this rank, by kind."""
        return {
            "parameters": [*self.parameters(), *self.module.buffers()],
            "gradients": self.gradients().parts,
            "optimizer": list(self.optimizer_state()),
        }
