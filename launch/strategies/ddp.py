"""DistributedDataParallel: the model on every rank, gradients all-reduced in buckets while backward runs.

Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", section 3.2.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._contract import Setting, Sharded, Strategy
from ._law import Bytes, Collective, Law, ModelShape, elements_of, replicated_law

if TYPE_CHECKING:
    from torch import nn


class DDP(Strategy):
    summary = "full copy per rank, bucketed all-reduce of gradients"
    knobs = frozenset({"bucket_mb", "overlap"})
    engines = ("native", "accelerate")

    def law(self, model: ModelShape, setting: Setting) -> Law:
        """Gradients live in the buckets that travel (`gradient_as_bucket_view`), so buckets cost nothing extra."""
        reduced = Bytes.of(setting).reduce * elements_of(model.trainable) * setting.reductions
        return replicated_law(
            model,
            setting,
            collectives=(
                Collective(kind="all_reduce", payload_bytes_per_step=reduced, phase="backward", purpose="gradients"),
            ),
            source="Li et al. 2020, section 3.2; gradients as views of the buckets",
        )

    def preload(self, setting: Setting) -> None:
        if setting.engine == "accelerate":
            from . import _accelerate  # noqa: F401
        from . import _native  # noqa: F401

    def shard(self, model: nn.Module, setting: Setting, blocks: Sequence[nn.Module]) -> Sharded:
        if setting.engine == "accelerate":
            from ._accelerate import accelerated_ddp

            return accelerated_ddp(model, setting)
        from torch.nn.parallel import DistributedDataParallel

        from ._native import NativeSharded

        wrapped = DistributedDataParallel(model, **ddp_options(setting))
        if not setting.overlap:
            wrapped.register_comm_hook(None, reduce_and_wait)

        def set_sync(sync: bool) -> None:
            wrapped.require_backward_grad_sync = sync

        return NativeSharded(model, setting, call=wrapped, replicas=setting.world_size, set_sync=set_sync)


def ddp_options(setting: Setting) -> dict[str, Any]:
    """DistributedDataParallel's options. Buffers are sent under no strategy: DeepSpeed never sends them, and a
    comparison must train one thing. The option's name changed after torch 2.11."""
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {"bucket_cap_mb": setting.bucket_mb, "gradient_as_bucket_view": True, buffers: False}


def reduce_and_wait(state: Any, bucket: Any) -> Any:
    """A communication hook that averages a bucket and lets backward go on only when that is done: no overlap.

    `bucket` is a torch.distributed.GradBucket; DDP takes a hook with no other annotation than that class itself.
    """
    import torch
    from torch import distributed

    gradients = bucket.buffer().div_(distributed.get_world_size())
    # Waited for by the work itself and not by its future: that wait is seen, and counted as communication.
    work = distributed.all_reduce(gradients, async_op=True)
    assert work is not None
    work.wait()
    done: Any = torch.futures.Future(devices=[gradients.device] if gradients.is_cuda else None)
    done.set_result(gradients)
    return done


del reduce_and_wait.__annotations__["bucket"], reduce_and_wait.__annotations__["return"]

strategy = DDP()
