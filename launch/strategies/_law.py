"""What a strategy costs by design: the bytes each rank holds, and what travels in an optimizer step. No torch.

A law is a pure function of the model's shape and the setting. The planner multiplies by it, `run.json` carries it
evaluated, and the law tests measure against it to the byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..precision import DTYPE_BYTES, PRECISIONS
from ..setting import Setting

Layout = Literal["replicated", "sharded"]
Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast"]
Phase = Literal["forward", "backward", "optimizer"]


@dataclass(frozen=True)
class ParameterShape:
    """One parameter. `block` is the index of the block that holds it, None for what lies outside all blocks.

    A tied parameter may have several `holders`: blocks, or a block and what lies outside.
    """

    shape: tuple[int, ...]
    block: int | None = None
    trainable: bool = True
    holders: int = 1

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelShape:
    """All of a model that its laws depend on: parameters in the model's order, and buffers, which no strategy shards.

    Floating-point buffers take the dtype of parameters that are cast; the others keep theirs.
    """

    parameters: tuple[ParameterShape, ...]
    float_buffer_elements: int = 0
    float_buffer_bytes: int = 0
    other_buffer_bytes: int = 0

    @property
    def trainable(self) -> tuple[ParameterShape, ...]:
        return tuple(parameter for parameter in self.parameters if parameter.trainable)

    @property
    def elements(self) -> int:
        return elements_of(self.parameters)

    def buffer_bytes(self, setting: Setting) -> int:
        bytes_of = Bytes.of(setting)
        real = self.float_buffer_elements * bytes_of.param if bytes_of.has_master else self.float_buffer_bytes
        return real + self.other_buffer_bytes


@dataclass(frozen=True)
class Bytes:
    """Bytes an element of each dtype that a precision fixes."""

    param: int
    grad: int
    reduce: int
    master: int

    @classmethod
    def of(cls, setting: Setting) -> Bytes:
        precision = PRECISIONS[setting.precision]
        return cls(*(DTYPE_BYTES[getattr(precision, name)] for name in ("param", "grad", "reduce", "master")))

    @property
    def has_master(self) -> bool:
        """Whether the optimizer updates an fp32 copy and not the parameters themselves."""
        return self.master != self.param


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes of model state that one rank holds at the optimizer step: between the last backward and the update."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One kind of collective of an optimizer step. Payload is the full unsharded tensor, in the dtype as sent.

    `upper_bound`: the library may send less, by what it finds still there at run time.
    """

    kind: Kind
    payload_bytes_per_step: int
    phase: Phase
    purpose: str
    upper_bound: bool = False


@dataclass(frozen=True, kw_only=True)
class Law:
    """Who holds what, and what travels each optimizer step. `reductions_per_step` counts gradient reductions.

    `accumulating_gradient_bytes` is what a rank holds of gradients between two micro-batches of a step, where they are
    not reduced yet; 0 where there is no such moment. What lives within one phase only (buckets, gathered blocks,
    gradients widened for an update) is in no law.
    """

    parameters: Layout
    gradients: Layout
    optimizer: Layout
    ranks: tuple[StateBytes, ...]
    collectives: tuple[Collective, ...]
    reductions_per_step: int
    accumulating_gradient_bytes: int
    source: str

    @property
    def worst(self) -> StateBytes:
        """The rank that holds most."""
        return max(self.ranks, key=lambda rank: rank.total)

    @property
    def payload_bytes_per_step(self) -> dict[str, int]:
        """Payload by kind of collective."""
        kinds = sorted({collective.kind for collective in self.collectives})
        return {kind: sum(c.payload_bytes_per_step for c in self.collectives if c.kind == kind) for kind in kinds}


def elements_of(parameters: Iterable[ParameterShape]) -> int:
    return sum(parameter.elements for parameter in parameters)


def unreduced_bytes(model: ModelShape, setting: Setting) -> int:
    """Whole gradients that wait for the last micro-batch, where they are reduced at the last one only."""
    waiting = setting.accumulation > 1 and setting.accumulation_sync == "last"
    return Bytes.of(setting).grad * elements_of(model.trainable) if waiting else 0


def optimizer_bytes(elements: int, *, tensors: int, setting: Setting) -> int:
    """Bytes of optimizer state for `elements` in `tensors` tensors: fp32 moments and, where there is one, the master.

    torch.optim.AdamW keeps two moments an element and a 4-byte step count a tensor; SGD one momentum an element.
    """
    master = 4 * elements if Bytes.of(setting).has_master else 0
    if setting.optimizer == "sgd":
        return master + 4 * elements
    return master + 8 * elements + 4 * tensors


def replicated_law(model: ModelShape, setting: Setting, collectives: tuple[Collective, ...], source: str) -> Law:
    """The law of a strategy in which each rank holds all."""
    bytes_of = Bytes.of(setting)
    trained = elements_of(model.trainable)
    state = StateBytes(
        parameters=bytes_of.param * model.elements + model.buffer_bytes(setting),
        gradients=bytes_of.grad * trained,
        optimizer=optimizer_bytes(trained, tensors=len(model.trainable), setting=setting),
    )
    return Law(
        parameters="replicated",
        gradients="replicated",
        optimizer="replicated",
        ranks=(state,) * setting.world_size,
        collectives=collectives if setting.world_size > 1 else (),
        reductions_per_step=setting.reductions if setting.world_size > 1 else 0,
        accumulating_gradient_bytes=unreduced_bytes(model, setting),
        source=source,
    )
