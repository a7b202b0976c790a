"""What a strategy is: its law, what it refuses, and how it wraps a model for training.

Adding a strategy is adding one file here with an object `strategy`. The planner, the run, the tests and the
reports find it on disk. Nothing in this package imports torch before `shard` is called.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

Layout = Literal["replicated", "sharded"]

# AdamW's constants are PyTorch's defaults (Loshchilov and Hutter 2019), written out so that no library's own win.
ADAMW_BETAS = (0.9, 0.999)
ADAMW_EPS = 1e-8
WEIGHT_DECAY = 0.01
SGD_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a strategy's law and its wrapper depend on, besides the model."""

    world_size: int
    device: Literal["cpu", "cuda"]
    precision: str = "fp32"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    micro_batch: int = 1
    accumulation: int = 1
    lr: float = 1e-3
    clip_norm: float | None = None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The optimizer's constants, the same under every strategy."""
        if self.optimizer == "sgd":
            return {"momentum": SGD_MOMENTUM, "weight_decay": WEIGHT_DECAY}
        return {"betas": ADAMW_BETAS, "eps": ADAMW_EPS, "weight_decay": WEIGHT_DECAY}


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes of model state that one rank holds at the optimizer step."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One kind of collective of an optimizer step. Payload is the full unsharded tensor, in the dtype as sent."""

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast"]
    payload_bytes_per_step: int
    phase: Literal["forward", "backward", "optimizer"]


@dataclass(frozen=True, kw_only=True)
class Law:
    """What a strategy costs by design: who holds what, and what travels each optimizer step."""

    parameters: Layout
    gradients: Layout
    optimizer: Layout
    ranks: tuple[StateBytes, ...]
    collectives: tuple[Collective, ...]
    reductions_per_step: int
    source: str

    @property
    def worst(self) -> StateBytes:
        """The rank that holds most."""
        return max(self.ranks, key=lambda rank: rank.total)


class Strategy(Protocol):
    """A way to share a model's state and work among ranks."""

    summary: str

    def unsupported(self, setting: Setting) -> str | None:
        """Why this strategy cannot run so, with the way out; None if it can."""
        ...

    def law(self, sizes: tuple[int, ...], setting: Setting) -> Law:
        """The law for trainable parameter tensors of `sizes` elements each, in the model's order. No torch."""
        ...

    def preload(self, setting: Setting) -> None:
        """Import the libraries that `shard` uses, without touching a device: done once before ranks are forked."""
        ...

    def shard(self, model: nn.Module, setting: Setting) -> Sharded:
        """Wrap `model`, whose parameters are on their device and equal on all ranks. The process group exists."""
        ...


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

    @abc.abstractmethod
    def gradients(self) -> tuple[list[torch.Tensor], int]:
        """After the last backward and before the step: the reduced gradients this rank holds, not yet clipped,
        and on how many ranks each of them is held alike."""

    @abc.abstractmethod
    def optimizer_state(self) -> Iterator[torch.Tensor]:
        """Every tensor the optimizer keeps on this rank, master copies of the parameters included."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint into `folder`. Called on all ranks together."""

    def state(self) -> Mapping[str, list[torch.Tensor]]:
        """The tensors of model state that are alive on this rank, by kind."""
        return {
            "parameters": [*self.module.parameters(), *self.module.buffers()],
            "gradients": self.gradients()[0],
            "optimizer": list(self.optimizer_state()),
        }


def replicated_law(sizes: tuple[int, ...], setting: Setting, collectives: tuple[Collective, ...], source: str) -> Law:
    """The law of a strategy in which each rank holds all: 4 bytes an element in fp32 and with autocast."""
    elements = sum(sizes)
    state = StateBytes(
        parameters=4 * elements,
        gradients=4 * elements,
        optimizer=optimizer_bytes(elements, tensors=len(sizes), setting=setting),
    )
    return Law(
        parameters="replicated",
        gradients="replicated",
        optimizer="replicated",
        ranks=(state,) * setting.world_size,
        collectives=collectives,
        reductions_per_step=1,
        source=source,
    )


def optimizer_bytes(elements: int, *, tensors: int, setting: Setting) -> int:
    """Bytes of fp32 optimizer state for `elements` in `tensors` tensors, master copies not counted.

    torch.optim.AdamW keeps two moments an element and a 4-byte step count a tensor; SGD one momentum an element.
    """
    if setting.optimizer == "sgd":
        return 4 * elements
    return 8 * elements + 4 * tensors
