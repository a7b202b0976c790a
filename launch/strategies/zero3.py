"""ZeRO stage 3 by DeepSpeed: parameters, gradients and optimizer state in shards; gathered where they are used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ._contract import Setting, Sharded
from ._law import Bytes, Collective, Law, ModelShape, StateBytes
from ._zero import Zero, bucket_elements, copy_and_moments_bytes

if TYPE_CHECKING:
    from torch import nn

# DeepSpeed's default for the size up to which a parameter stays whole on every rank: an upper limit here.
MOST_PERSISTENT_ELEMENTS = 100_000
UNLIMITED_ELEMENTS = 10**15


class Zero3(Zero):
    stage = 3
    summary = "parameters, gradients and optimizer state sharded, gathered per block (DeepSpeed)"
    accumulation_syncs = ("each",)

    def law(self, model: ModelShape, setting: Setting) -> Law:
        """Each parameter is cut into equal shards of ceil(elements / world), padded at the end; small ones are kept
        whole beside their shard and gathered again after each update.

        A rank keeps an fp32 copy of its shards beside the optimizer's moments in every precision. Each micro-batch
        gathers every other parameter in forward and in backward, once for each block that holds it, and scatters the
        reduced gradients. That counts blocks and modules that run once in forward. Where gathering runs ahead (on
        CUDA), parameters that are needed again soon after the turn from forward to backward are kept: both gathers
        together are then an upper bound.
        """
        bytes_of, world = Bytes.of(setting), setting.world_size
        shards = [math.ceil(parameter.elements / world) for parameter in model.parameters]
        limit = persistent_elements(model)
        small = [parameter.elements <= limit for parameter in model.parameters]
        trained = sum(shard for shard, p in zip(shards, model.parameters, strict=True) if p.trainable)
        kept = world * sum(shard for shard, whole in zip(shards, small, strict=True) if whole)
        gathered = world * sum(
            shard * parameter.holders
            for shard, parameter, whole in zip(shards, model.parameters, small, strict=True)
            if not whole
        )
        # With one rank the whole is a view of its shard, unless it is the only one of its kind, which is copied.
        beside = kept if world > 1 or sum(small) == 1 else 0
        state = StateBytes(
            parameters=bytes_of.param * (sum(shards) + beside) + model.buffer_bytes(setting),
            gradients=bytes_of.grad * trained,
            optimizer=copy_and_moments_bytes(trained, setting),
        )
        per_gather = bytes_of.param * gathered * setting.accumulation
        reduced = bytes_of.reduce * world * trained * setting.accumulation
        gathers = [
            Collective(kind="all_gather", payload_bytes_per_step=per_gather, phase="forward", purpose="parameters"),
            Collective(kind="all_gather", payload_bytes_per_step=per_gather, phase="backward", purpose="parameters"),
        ]
        if prefetch_elements(model, setting):
            both = "parameters for forward and backward"
            gathers = [replace(gathers[0], payload_bytes_per_step=2 * per_gather, purpose=both, upper_bound=True)]
        collectives = [
            *gathers,
            Collective(kind="reduce_scatter", payload_bytes_per_step=reduced, phase="backward", purpose="gradients"),
            # DeepSpeed sums the norm in double precision, with clipping or without.
            Collective(kind="all_reduce", payload_bytes_per_step=8, phase="optimizer", purpose="gradient norm"),
            Collective(
                kind="all_gather",
                payload_bytes_per_step=bytes_of.param * kept,
                phase="optimizer",
                purpose="small updated parameters",
            ),
        ]
        return Law(
            parameters="sharded",
            gradients="sharded",
            optimizer="sharded",
            ranks=(state,) * world,
            collectives=tuple(c for c in collectives if c.payload_bytes_per_step) if world > 1 else (),
            reductions_per_step=setting.accumulation if world > 1 else 0,
            accumulating_gradient_bytes=0,
            source="Rajbhandari et al. 2020, section 5; deepspeed 0.19 runtime/zero/stage3.py, parameters of at most "
            f"{limit:,} elements whole",
        )

    def zero_config(self, model: ModelShape, setting: Setting) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "overlap_comm": bool(setting.overlap),
            "reduce_bucket_size": bucket_elements(setting),
            "reduce_scatter": True,
            "contiguous_gradients": True,
            "sub_group_size": UNLIMITED_ELEMENTS,
            "stage3_param_persistence_threshold": persistent_elements(model),
            "stage3_model_persistence_threshold": UNLIMITED_ELEMENTS,
            "stage3_prefetch_bucket_size": prefetch_elements(model, setting),
            "stage3_max_live_parameters": UNLIMITED_ELEMENTS,
            # DeepSpeed's default of 1e9 keeps a parameter gathered from forward to backward in any model of up to a
            # billion parameters, whose peak of memory is then that of stage 2.
            "stage3_max_reuse_distance": 0,
            "stage3_gather_16bit_weights_on_model_save": False,
            # On by default, this replaces torch.nn.functional.linear for the whole process, and with selective
            # checkpointing its gradients are wrong by 7e-4.
            "memory_efficient_linear": False,
        }

    def shard(self, model: nn.Module, setting: Setting, blocks: Sequence[nn.Module]) -> Sharded:
        from ..build import shape_of
        from ._deepspeed import ShardedParameters

        return ShardedParameters(model, setting, self.zero_config(shape_of(model, blocks), setting), blocks)


def persistent_elements(model: ModelShape) -> int:
    """The size up to which parameters stay whole: that of the longest vector, so that biases and norms do, as gathering
    them costs more time than the memory is worth, and larger matrices are sharded whatever the model's size."""
    vectors = [parameter.elements for parameter in model.parameters if len(parameter.shape) <= 1]
    return min(max(vectors, default=0), MOST_PERSISTENT_ELEMENTS)


def prefetch_elements(model: ModelShape, setting: Setting) -> int:
    """How far gathering runs ahead: on CUDA by the largest block, as FSDP2 does; not on CPU, where ranks have no spare
    core for it, nor without `--overlap`, which DeepSpeed's gathers ignore. DeepSpeed's default of 5e7 would keep any
    smaller model gathered from forward to backward."""
    if setting.device == "cpu" or not setting.overlap:
        return 0
    limit = persistent_elements(model)
    blocks: Counter[int] = Counter()
    for parameter in model.parameters:
        if parameter.block is not None and parameter.elements > limit:
            blocks[parameter.block] += parameter.elements
    return max(blocks.values(), default=0)


strategy = Zero3()
