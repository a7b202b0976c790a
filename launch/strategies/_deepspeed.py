"""DeepSpeed's engine behind the contract: shared by the ZeRO stages.

Every setting that DeepSpeed would fill in by itself and that changes what is trained is written out here.
In particular it clips gradients to norm 1.0 unless told otherwise.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import NumericError
from ..optimizer import make_optimizer
from ..precision import PRECISIONS
from ..setting import Setting
from ._contract import Gradients, Sharded
from ._zero_leaf import keep_leaf_rules

if TYPE_CHECKING:
    from types import ModuleType


def import_deepspeed(device: str) -> ModuleType:
    """DeepSpeed, told which device to use. It looks at the machine when imported, so the choice comes before."""
    os.environ["DS_ACCELERATOR"] = device
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # Compiled at first use (C++ compiler, half a minute) for an inference collective that training never calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def engine_config(setting: Setting, zero: dict[str, Any]) -> dict[str, Any]:
    """The whole DeepSpeed config of a run; `zero` is the `zero_optimization` section."""
    precision = PRECISIONS[setting.precision]
    return {
        "train_micro_batch_size_per_gpu": setting.micro_batch,
        "gradient_accumulation_steps": setting.accumulation,
        "gradient_clipping": setting.clip_norm or 0.0,
        "communication_data_type": precision.reduce,
        "data_types": {"grad_accum_dtype": precision.grad},
        "fp16": {"enabled": False},
        # Checking for overflow would skip updates without a word where there is no loss scale to lower.
        "bf16": {"enabled": precision.param == "bf16", "check_grad_overflow": False},
        "prescale_gradients": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,
    }


class DeepSpeedSharded(Sharded):
    """What every stage shares: the engine runs forward, backward and the update."""

    def __init__(self, model: nn.Module, setting: Setting, zero: dict[str, Any]) -> None:
        super().__init__(model, setting)
        deepspeed = import_deepspeed(setting.device)
        # Without it DeepSpeed runs `numactl` on CPU for every bucket that stage 3 reduces, to count devices.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._engine, self._zero, *_ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(trainable, setting),
            config=engine_config(setting, zero),
            dist_init_required=False,
        )
        self._scaler = None
        if PRECISIONS[setting.precision].scales_loss:
            from ._zero_scaler import LossScaler

            self._scaler = self._zero.loss_scaler = LossScaler()
            self._zero.dynamic_loss_scale = True

    def forward(self, batch: Any, last: bool) -> torch.Tensor:
        return self._engine(batch)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        # The engine divides by the number of micro-batches itself.
        self._engine.backward(loss)

    def step(self, last: bool) -> None:
        assert self._engine.is_gradient_accumulation_boundary() == last
        self._engine.step()
        if last and self._scaler:
            self._scaler.settle()
        elif last and self._zero.overflow:
            # DeepSpeed skips such an update in every precision and says nothing: other strategies would train on.
            raise NumericError(
                "a gradient is not finite",
                hint="lower --lr, warm it up with --lr-warmup-steps, or clip with --clip-norm 1",
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._zero.param_groups

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        return self._zero.optimizer

    @property
    def skipped(self) -> torch.Tensor | bool:
        return self._zero.overflow

    def gradients(self) -> Gradients:
        parts = [part for group in self._zero.averaged_gradients.values() for part in group or ()]
        return Gradients(parts, 1, self._zero.loss_scale)

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        yield from self._fp32_copies()
        for state in self._zero.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    def buckets(self) -> Iterator[torch.Tensor]:
        for bucket in self._zero.ipg_buckets.values():
            # Stage 3 has one buffer or none for each, stages 1 and 2 a list of them.
            buffers = bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer]
            yield from (buffer for buffer in buffers if buffer is not None)

    @abc.abstractmethod
    def _fp32_copies(self) -> Iterator[torch.Tensor]:
        """The copies of this rank's parameters that the optimizer updates."""

    def close(self) -> None:
        self._engine.destroy()

    def save(self, folder: Path) -> None:
        with _failures_at_the_end(self._engine):
            self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)


@contextlib.contextmanager
def _failures_at_the_end(engine: Any) -> Iterator[None]:
    """Within, `engine` goes on after a file that it could not write, and the failure is raised when it is done: its
    save ends in a barrier, where the other ranks would wait for one that has raised."""
    failures: list[Exception] = []
    writer = engine.checkpoint_engine
    write = writer.save

    def save(*args: Any, **options: Any) -> None:
        try:
            write(*args, **options)
        except Exception as error:
            failures.append(error)

    writer.save = save
    # Programs for converting a checkpoint, which it would put beside it: nobody asked, and they can fail as well.
    engine._copy_recovery_script = lambda save_path: None
    try:
        yield
    finally:
        del writer.save
    if failures:
        raise failures[0]


class SlicedStates(DeepSpeedSharded):
    """Stages 1 and 2: parameters whole on each rank, optimizer state and its fp32 copy in slices."""

    def parameters(self) -> Iterator[torch.Tensor]:
        return self.module.parameters()

    def _fp32_copies(self) -> Iterator[torch.Tensor]:
        yield from self._zero.single_partition_of_fp32_groups


class ShardedParameters(DeepSpeedSharded):
    """Stage 3: a rank keeps a shard of each parameter, and gathers a block's parameters together where it runs."""

    def __init__(self, model: nn.Module, setting: Setting, zero: dict[str, Any], blocks: Sequence[nn.Module]) -> None:
        from deepspeed.utils import set_z3_leaf_module

        self._run: set[nn.Module] = set()
        for block in blocks:
            if any(parameter.requires_grad for parameter in block.parameters()):
                set_z3_leaf_module(block, True)
                keep_leaf_rules(block, self._run)
        super().__init__(model, setting, zero)

    def forward(self, batch: Any, last: bool) -> torch.Tensor:
        self._run.clear()
        return super().forward(batch, last)

    def parameters(self) -> Iterator[torch.Tensor]:
        for parameter in self.module.parameters():
            # The first is empty but for small parameters, which stay whole beside their shard.
            yield parameter
            yield parameter.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]

    def _fp32_copies(self) -> Iterator[torch.Tensor]:
        yield from self._zero.fp32_partitioned_groups_flat

    def close(self) -> None:
        from deepspeed.runtime.zero import parameter_offload
        from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

        super().close()
        # Both keep the model alive: a list of modules, and a method's cache, which a decorator hides in its closure.
        parameter_offload.FWD_MODULE_STACK.clear()
        cached = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
        for cell in cached.__closure__ or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
