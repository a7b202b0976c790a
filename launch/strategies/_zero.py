"""What DeepSpeed's three ZeRO stages have in common, without torch: what they refuse, and how they cut a model.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5. The laws say
what DeepSpeed 0.19 does, read in its runtime/zero and measured to the byte by the law tests.
"""

from __future__ import annotations

import abc
import importlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._contract import Setting, Sharded, Strategy
from ._law import Bytes, Collective, Law, ModelShape, StateBytes, optimizer_bytes, unreduced_bytes

if TYPE_CHECKING:
    from torch import nn

# DeepSpeed pads the flat parameters of stages 1 and 2 so that each rank's slice is a multiple of this many elements.
ALIGNMENT_ELEMENTS = 2
MEBIBYTE = 2**20


class Zero(Strategy):
    """A stage of ZeRO: `stage` is DeepSpeed's number of it."""

    stage: int
    knobs = frozenset({"bucket_mb", "overlap"})

    def packages(self, setting: Setting) -> tuple[str, ...]:
        return ("deepspeed",)

    def default_overlap(self, device: str) -> bool:
        return device == "cuda"

    def unsupported(self, setting: Setting) -> str | None:
        if setting.device == "cpu" and setting.precision == "fp16":
            return "--precision fp16: DeepSpeed has no fp16 on CPU: use bf16, or fp16 with ddp or fsdp2"
        if setting.device == "cpu" and setting.overlap:
            return (
                "--overlap true: DeepSpeed overlaps by CUDA streams, on CPU it would run each reduction to its end; "
                "leave it out, or use ddp"
            )
        return None

    def preload(self, setting: Setting) -> None:
        from ._deepspeed import import_deepspeed

        import_deepspeed(setting.device)
        # deepspeed.initialize imports this at first use, and with it torch's compiler: two seconds in each rank.
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")

    @abc.abstractmethod
    def zero_config(self, model: ModelShape, setting: Setting) -> dict[str, Any]:
        """The `zero_optimization` section of DeepSpeed's config, with everything that it would choose by itself."""

    def shard(self, model: nn.Module, setting: Setting, blocks: Sequence[nn.Module]) -> Sharded:
        from ..build import shape_of
        from ._deepspeed import SlicedStates

        return SlicedStates(model, setting, self.zero_config(shape_of(model, blocks), setting))


class SlicedZero(Zero):
    """Stages 1 and 2, which differ in when gradients are reduced: at the last micro-batch, or at each."""

    def law(self, model: ModelShape, setting: Setting) -> Law:
        return sliced_law(
            model,
            setting,
            source="Rajbhandari et al. 2020, section 5; deepspeed 0.19 runtime/zero/stage_1_and_2.py",
        )

    def zero_config(self, model: ModelShape, setting: Setting) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "overlap_comm": bool(setting.overlap),
            "round_robin_gradients": False,
            "reduce_bucket_size": bucket_elements(setting),
            "allgather_bucket_size": bucket_elements(setting),
            # With both False stages 1 and 2 skip the gradient reduction on CPU (DeepSpeed issue 8381).
            "reduce_scatter": True,
            "contiguous_gradients": True,
        }


def bucket_elements(setting: Setting) -> int:
    """`--bucket-mb` in elements, as DeepSpeed counts, down to a multiple of its alignment."""
    assert setting.bucket_mb is not None
    elements = int(setting.bucket_mb * MEBIBYTE / Bytes.of(setting).reduce)
    return max(1, elements // ALIGNMENT_ELEMENTS) * ALIGNMENT_ELEMENTS


def sliced_law(model: ModelShape, setting: Setting, *, source: str) -> Law:
    """Stages 1 and 2: the trainable parameters laid end to end, padded to a multiple of 2 x world and cut into equal
    slices, of which each rank owns one.

    It keeps an fp32 copy of its slice beside the optimizer's moments, also when the parameters are fp32 already.
    Gradients are all-reduced in buckets; each rank then keeps what touches its slice, and a tensor that crosses the
    edge of a slice is kept whole. The updated slices are all-gathered once a step, after the norm of the gradients
    has been summed, with clipping or without.
    """
    bytes_of, world = Bytes.of(setting), setting.world_size
    sizes = [parameter.elements for parameter in model.trainable]
    trained = sum(sizes)
    quantum = ALIGNMENT_ELEMENTS * world
    padded = math.ceil(trained / quantum) * quantum
    share = padded // world
    ranks = tuple(
        StateBytes(
            parameters=bytes_of.param * (padded + model.elements - trained) + model.buffer_bytes(setting),
            gradients=bytes_of.grad * _touched_elements(sizes, start=rank * share, stop=(rank + 1) * share),
            optimizer=copy_and_moments_bytes(share, setting),
        )
        for rank in range(world)
    )
    reduced = bytes_of.reduce * trained * setting.reductions
    collectives = (
        Collective(kind="all_reduce", payload_bytes_per_step=reduced, phase="backward", purpose="gradients"),
        Collective(kind="all_reduce", payload_bytes_per_step=4, phase="optimizer", purpose="gradient norm"),
        Collective(
            kind="all_gather",
            payload_bytes_per_step=bytes_of.param * padded,
            phase="optimizer",
            purpose="updated parameters",
        ),
    )
    return Law(
        parameters="replicated",
        gradients="sharded",
        optimizer="sharded",
        ranks=ranks,
        collectives=collectives if world > 1 else (),
        reductions_per_step=setting.reductions if world > 1 else 0,
        accumulating_gradient_bytes=unreduced_bytes(model, setting),
        source=source,
    )


def copy_and_moments_bytes(share: int, setting: Setting) -> int:
    """The fp32 copy that DeepSpeed keeps in every precision, and the optimizer's state of one flat tensor."""
    copy = 0 if Bytes.of(setting).has_master else 4 * share
    return copy + optimizer_bytes(share, tensors=1, setting=setting)


def _touched_elements(sizes: Sequence[int], *, start: int, stop: int) -> int:
    """Elements of the tensors that touch [start, stop) of the flat parameters, and of the padding at its end."""
    held, offset = 0, 0
    for size in sizes:
        if offset < stop and offset + size > start:
            held += size
        offset += size
    return held + max(0, stop - max(start, offset))
