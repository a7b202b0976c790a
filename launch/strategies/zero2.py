"""ZeRO stage 2 by DeepSpeed: optimizer state and gradients in slices, one per rank; parameters whole on each.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ._contract import Collective, Law, Setting, Sharded, StateBytes, optimizer_bytes

if TYPE_CHECKING:
    from torch import nn

# DeepSpeed pads the flat parameters so that every rank's slice starts at a multiple of this many elements.
ALIGNMENT_ELEMENTS = 2


class Zero2:
    summary = "full parameters per rank, sliced optimizer state and gradients (DeepSpeed)"

    def unsupported(self, setting: Setting) -> str | None:
        return None

    def law(self, sizes: tuple[int, ...], setting: Setting) -> Law:
        """As DeepSpeed 0.19 holds it, read in its stage_1_and_2.py and measured by the conformance test.

        The flat fp32 parameters are padded to a multiple of 2 x world; each rank owns an equal slice and keeps an
        fp32 copy of it beside the optimizer's moments, also when the parameters are fp32 already. Gradients are
        all-reduced in buckets (each rank then keeps what touches its slice: a tensor that crosses its edge is
        kept whole), and the updated slices are all-gathered once a step.
        """
        world = setting.world_size
        quantum = ALIGNMENT_ELEMENTS * world
        padded = math.ceil(sum(sizes) / quantum) * quantum
        share = padded // world
        ranks = tuple(
            StateBytes(
                parameters=4 * padded,
                gradients=4 * _gradient_elements(sizes, start=rank * share, stop=(rank + 1) * share),
                optimizer=4 * share + optimizer_bytes(share, tensors=1, setting=setting),
            )
            for rank in range(world)
        )
        reduced = 4 * sum(sizes) * setting.accumulation
        collectives = (
            Collective(kind="all_reduce", payload_bytes_per_step=reduced, phase="backward"),
            Collective(kind="all_gather", payload_bytes_per_step=4 * padded, phase="optimizer"),
        )
        return Law(
            parameters="replicated",
            gradients="sharded",
            optimizer="sharded",
            ranks=ranks,
            collectives=collectives if world > 1 else (),
            reductions_per_step=setting.accumulation,
            source="Rajbhandari et al. 2020, section 5; deepspeed 0.19 runtime/zero/stage_1_and_2.py",
        )

    def preload(self, setting: Setting) -> None:
        from ._deepspeed import import_deepspeed

        import_deepspeed(setting.device)

    def shard(self, model: nn.Module, setting: Setting) -> Sharded:
        from ._deepspeed import BUCKET_ELEMENTS, DeepSpeedSharded

        zero = {
            "stage": 2,
            "overlap_comm": False,
            "round_robin_gradients": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            # With both False stages 1 and 2 skip the gradient reduction on CPU (DeepSpeed issue 8381).
            "reduce_scatter": True,
            "contiguous_gradients": True,
        }
        return DeepSpeedSharded(model, setting, zero)


def _gradient_elements(sizes: tuple[int, ...], *, start: int, stop: int) -> int:
    """Elements of the tensors that touch [start, stop) of the flat parameters, and of the padding at its end."""
    held, offset = 0, 0
    for size in sizes:
        if offset < stop and offset + size > start:
            held += size
        offset += size
    return held + max(0, stop - max(start, offset))


strategy = Zero2()
