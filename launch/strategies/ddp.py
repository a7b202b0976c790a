"""DistributedDataParallel: the model on every rank, gradients all-reduced in buckets while backward runs.

Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", section 3.2.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from ._contract import Collective, Law, Setting, Sharded, replicated_law

if TYPE_CHECKING:
    from torch import nn

BUCKET_MB = 25


class DDP:
    summary = "full copy per rank, bucketed all-reduce of gradients"

    def unsupported(self, setting: Setting) -> str | None:
        return None

    def law(self, sizes: tuple[int, ...], setting: Setting) -> Law:
        """Gradients live in the buckets that travel (`gradient_as_bucket_view`), so buckets cost nothing extra."""
        reduced = Collective(kind="all_reduce", payload_bytes_per_step=4 * sum(sizes), phase="backward")
        return replicated_law(
            sizes,
            setting,
            collectives=(reduced,) if setting.world_size > 1 else (),
            source="Li et al. 2020, section 3.2; gradients as views of the buckets",
        )

    def preload(self, setting: Setting) -> None:
        from . import _replicated  # noqa: F401

    def shard(self, model: nn.Module, setting: Setting) -> Sharded:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        from ._replicated import Replicated

        wrapped = DistributedDataParallel(
            model,
            device_ids=[torch.cuda.current_device()] if setting.device == "cuda" else None,
            bucket_cap_mb=BUCKET_MB,
            gradient_as_bucket_view=True,
            **_buffers_not_sent(inspect.signature(DistributedDataParallel)),
        )

        def set_sync(last: bool) -> None:
            wrapped.require_backward_grad_sync = last

        return Replicated(model, setting, call=wrapped, set_sync=set_sync)


def _buffers_not_sent(signature: inspect.Signature) -> dict[str, Any]:
    """The option that sends buffers in every forward, whose name changed after torch 2.11. It is off under every
    strategy: DeepSpeed never sends buffers, and a comparison must train one thing."""
    name = "forward_sync_buffers" if "forward_sync_buffers" in signature.parameters else "broadcast_buffers"
    return {name: False}


strategy = DDP()
