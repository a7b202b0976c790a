"""ZeRO stage 1 by DeepSpeed: optimizer state in slices, one per rank, gradients reduced once a step; parameters whole.

Its law is that of both stages, `sliced_law` in `_zero.py`.
"""

from __future__ import annotations

from ._zero import SlicedZero


class Zero1(SlicedZero):
    stage = 1
    summary = "full parameters per rank, sliced optimizer state, gradients reduced once a step (DeepSpeed)"
    accumulation_syncs = ("last",)


strategy = Zero1()
