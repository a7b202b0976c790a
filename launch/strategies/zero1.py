"""ZeRO stage 1 by DeepSpeed: optimizer state in slices, one per rank; parameters whole on each."""

from __future__ import annotations

from typing import Any

from ._contract import Setting
from ._law import Law, ModelShape
from ._zero import Zero, sliced_config, sliced_law


class Zero1(Zero):
    stage = 1
    summary = "full parameters per rank, sliced optimizer state, gradients reduced once a step (DeepSpeed)"
    accumulation_syncs = ("last",)

    def law(self, model: ModelShape, setting: Setting) -> Law:
        return sliced_law(
            model,
            setting,
            source="Rajbhandari et al. 2020, section 5; deepspeed 0.19 runtime/zero/stage_1_and_2.py",
        )

    def zero_config(self, model: ModelShape, setting: Setting) -> dict[str, Any]:
        return sliced_config(self.stage, setting)


strategy = Zero1()
