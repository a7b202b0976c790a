"""One process, no wrapper: the reference that every strategy is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._contract import Setting, Sharded, Strategy
from ._law import Law, ModelShape, replicated_law

if TYPE_CHECKING:
    from torch import nn


class Single(Strategy):
    summary = "one process, no wrapper"
    accumulation_syncs = ("last",)

    def unsupported(self, setting: Setting) -> str | None:
        if setting.world_size > 1:
            ranks = setting.world_size
            return f"single trains one model copy on one rank, not on {ranks}: use --gpus 1, or --strategy ddp"
        return None

    def law(self, model: ModelShape, setting: Setting) -> Law:
        return replicated_law(
            model, setting, collectives=(), source="torch.optim state: one fp32 tensor a parameter and moment"
        )

    def preload(self, setting: Setting) -> None:
        from . import _native  # noqa: F401

    def shard(self, model: nn.Module, setting: Setting, blocks: Sequence[nn.Module]) -> Sharded:
        from ._native import NativeSharded

        return NativeSharded(model, setting, call=model)


strategy = Single()
