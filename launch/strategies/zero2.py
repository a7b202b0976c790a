"""ZeRO stage 2 by DeepSpeed: optimizer state and gradients in slices, one per rank; parameters whole on each.

Its law is that of both stages, `sliced_law` in `_zero.py`.
"""

from __future__ import annotations

from ._zero import SlicedZero


class Zero2(SlicedZero):
    stage = 2
    summary = "full parameters per rank, sliced optimizer state and gradients (DeepSpeed)"
    accumulation_syncs = ("each",)


strategy = Zero2()
