"""FSDP2 (torch's fully_shard): parameters, gradients and optimizer state in shards, gathered block by block.

Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel"; the second version shards each
parameter along its first dimension and keeps it a DTensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ._contract import Setting, Sharded, Strategy
from ._law import Bytes, Collective, Law, ModelShape, ParameterShape, StateBytes, optimizer_bytes, unreduced_bytes

if TYPE_CHECKING:
    from torch import nn


class FSDP2(Strategy):
    summary = "parameters, gradients and optimizer state sharded by dimension 0, gathered per block (torch)"
    engines = ("native", "accelerate")

    def unsupported_model(self, model: ModelShape) -> str | None:
        if any(parameter.shape == () for parameter in model.parameters):
            return "fully_shard cannot shard a parameter without dimensions: give it shape (1,), or use ddp or zero"
        if any(parameter.holders > 1 for parameter in model.parameters):
            return "a parameter is tied across blocks, and each block is sharded on its own: use ddp or zero"
        return None

    def law(self, model: ModelShape, setting: Setting) -> Law:
        """As torch 2.13 holds it, read in torch/distributed/fsdp/_fully_shard and measured by the law tests.

        A parameter is cut into equal runs of rows, ceil(rows / world) each; what is stored and sent is padded to that,
        what the optimizer sees is not. Blocks are freed after forward and gathered again for backward, which leaves out
        frozen ones that no gradient passes through; what lies outside the blocks is gathered once and stays until its
        backward is done. That counts blocks that run once in forward.
        """
        bytes_of, world = Bytes.of(setting), setting.world_size
        trainable = model.trainable
        padded = sum(_padded_shard(parameter, world) for parameter in model.parameters)
        padded_trainable = sum(_padded_shard(parameter, world) for parameter in trainable)
        ranks = tuple(
            StateBytes(
                parameters=bytes_of.param * padded + model.buffer_bytes(setting),
                gradients=bytes_of.grad * padded_trainable,
                optimizer=optimizer_bytes(
                    sum(_shard(parameter, world, rank) for parameter in trainable),
                    tensors=len(trainable),
                    setting=setting,
                ),
            )
            for rank in range(world)
        )
        gathered = bytes_of.param * world * padded * setting.accumulation
        regathered = bytes_of.param * world * setting.accumulation
        regathered *= sum(
            _padded_shard(parameter, world) for parameter in model.parameters if parameter.block is not None
        )
        reduced = bytes_of.reduce * world * padded_trainable * setting.reductions
        collectives = [
            Collective(kind="all_gather", payload_bytes_per_step=gathered, phase="forward", purpose="parameters"),
            Collective(
                kind="all_gather",
                payload_bytes_per_step=regathered,
                phase="backward",
                purpose="parameters",
                upper_bound=_has_frozen_block(model),
            ),
            Collective(kind="reduce_scatter", payload_bytes_per_step=reduced, phase="backward", purpose="gradients"),
            *_control(setting, tensors=len(trainable)),
        ]
        return Law(
            parameters="sharded",
            gradients="sharded",
            optimizer="sharded",
            ranks=ranks,
            collectives=tuple(c for c in collectives if c.payload_bytes_per_step) if world > 1 else (),
            reductions_per_step=setting.reductions if world > 1 else 0,
            accumulating_gradient_bytes=unreduced_bytes(model, setting),
            source="Zhao et al. 2023; torch 2.13 torch/distributed/fsdp/_fully_shard",
        )

    def preload(self, setting: Setting) -> None:
        if setting.engine == "accelerate":
            from . import _accelerate  # noqa: F401

        from . import _native  # noqa: F401

    def shard(self, model: nn.Module, setting: Setting, blocks: Sequence[nn.Module]) -> Sharded:
        if setting.engine == "accelerate":
            from ._accelerate import accelerated_fsdp2

            return accelerated_fsdp2(model, setting, blocks)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        from ._native import NativeSharded

        mesh = init_device_mesh(setting.device, (setting.world_size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert isinstance(model, FSDPModule)
        return NativeSharded(model, setting, call=model, set_sync=model.set_requires_gradient_sync)


def _control(setting: Setting, *, tensors: int) -> Iterable[Collective]:
    """The small collectives of an update: whether a scaled gradient overflowed, and each parameter's norm."""
    if setting.precision == "fp16":
        yield Collective(kind="all_reduce", payload_bytes_per_step=4, phase="optimizer", purpose="overflow flag")
    if setting.clip_norm is not None:
        norms = 4 * tensors
        yield Collective(kind="all_reduce", payload_bytes_per_step=norms, phase="optimizer", purpose="gradient norms")


def _has_frozen_block(model: ModelShape) -> bool:
    trained = {parameter.block for parameter in model.trainable}
    return any(parameter.block is not None and parameter.block not in trained for parameter in model.parameters)


def _padded_shard(parameter: ParameterShape, world: int) -> int:
    """Elements that every rank stores of a parameter."""
    rows, row = parameter.shape[0], math.prod(parameter.shape[1:])
    return math.ceil(rows / world) * row


def _shard(parameter: ParameterShape, world: int, rank: int) -> int:
    """Elements of a parameter that are rank `rank`'s own: torch.chunk's cut, which may leave the last ranks none."""
    rows, row = parameter.shape[0], math.prod(parameter.shape[1:])
    chunk = math.ceil(rows / world)
    return max(0, min(rows, (rank + 1) * chunk) - rank * chunk) * row


strategy = FSDP2()
