"""ZeRO stage 2 by DeepSpeed: optimizer state and gradients in slices, one per rank; parameters whole on each."""

from __future__ import annotations

from typing import Any

from ._contract import Setting
from ._law import Law, ModelShape
from ._zero import Zero, sliced_config, sliced_law


class Zero2(Zero):
    stage = 2
    summary = "full parameters per rank, sliced optimizer state and gradients (DeepSpeed)"
    accumulation_syncs = ("each",)

    def law(self, model: ModelShape, setting: Setting) -> Law:
        return sliced_law(
            model,
            setting,
            source="Rajbhandari et al. 2020, section 5; deepspeed 0.19 runtime/zero/stage_1_and_2.py",
        )

    def zero_config(self, model: ModelShape, setting: Setting) -> dict[str, Any]:
        return sliced_config(self.stage, setting)


strategy = Zero2()
