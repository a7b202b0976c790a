"""Hugging Face Accelerate behind the contract: `ddp` and `fsdp2` as its Accelerator prepares, syncs and steps them.

What Accelerate would read from the environment, or replace without a word, is written out here; what it made of the
model is checked before the first step. Read in accelerate 1.15 accelerator.py, state.py and utils/fsdp_utils.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    ParallelismConfig,
)
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..optimizer import make_optimizer
from ..setting import Setting
from ._native import NativeSharded, any_of
from .ddp import reduce_and_wait

# Accelerate reads these, lets some win over its own arguments, and leaves some behind for the next Accelerator.
READ_BY_ACCELERATE = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "OMP_NUM_THREADS")


@contextlib.contextmanager
def _environment_of_its_own() -> Iterator[None]:
    """Hides the variables that Accelerate reads and takes back those it sets. Without a number of threads it would
    set its own."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(READ_BY_ACCELERATE)}
    for name in kept:
        del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(READ_BY_ACCELERATE)]:
            del os.environ[name]
        os.environ.update(kept)


@_environment_of_its_own()
def accelerated_ddp(model: nn.Module, setting: Setting) -> AcceleratedSharded:
    """`model` in the DistributedDataParallel that Accelerate makes."""
    assert setting.bucket_mb is not None
    options = DistributedDataParallelKwargs(bucket_cap_mb=setting.bucket_mb, gradient_as_bucket_view=True)  # pyright: ignore[reportArgumentType] (torch takes parts of a MiB)
    accelerator = _accelerator(setting, kwargs_handlers=[options])
    wrapped = accelerator.prepare(model)
    _check(isinstance(wrapped, DistributedDataParallel), "did not put the model into DistributedDataParallel")
    # Set here, as the name of the argument changed after torch 2.11 and Accelerate knows the old one only.
    wrapped.broadcast_buffers = False
    if not setting.overlap:
        wrapped.register_comm_hook(None, reduce_and_wait)
    return AcceleratedSharded(model, setting, accelerator, wrapped, replicas=setting.world_size)


@_environment_of_its_own()
def accelerated_fsdp2(model: nn.Module, setting: Setting, blocks: Sequence[nn.Module]) -> AcceleratedSharded:
    """`model` with fully_shard applied by Accelerate to `blocks` and to the rest."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        mixed_precision_policy=MixedPrecisionPolicy(),
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=_named_apart(blocks),
        cpu_offload=False,
        activation_checkpointing=False,
        cpu_ram_efficient_loading=False,
        state_dict_type="SHARDED_STATE_DICT",
    )
    accelerator = _accelerator(setting, fsdp_plugin=plugin)
    if setting.device == "cpu":
        _allow_fsdp2_on_cpu(accelerator, plugin)
    # It takes a model with an optimizer only. This one is dropped: the optimizer is made over the shards.
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with _no_units_of_its_own(model):
        accelerator.prepare(model, make_optimizer(trainable, setting))
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    _check({*units} == {*blocks, model}, f"sharded {len(units)} units, not the {len(blocks)} blocks and the rest")
    whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    _check(not whole, f"left parameters whole: {', '.join(whole)}")
    return AcceleratedSharded(model, setting, accelerator, model)


class AcceleratedSharded(NativeSharded):
    """A prepared model: Accelerate divides the loss, withholds the reduction, and steps when gradients are whole."""

    def __init__(
        self, module: nn.Module, setting: Setting, accelerator: Accelerator, wrapped: nn.Module, *, replicas: int = 1
    ) -> None:
        super().__init__(module, setting, call=wrapped, replicas=replicas)
        self._accelerator = accelerator
        self._wrapped = wrapped
        self._bare = self._optimizer
        # Its own fp16 has no scaler on CPU, and reduces in fp16 under FSDP2. So the scaler is ours, run by it.
        accelerator.scaler = self._scaler if self._scaler.is_enabled() else None
        self._optimizer = accelerator.prepare_optimizer(self._bare)
        self._micro_batch = contextlib.ExitStack()

    def forward(self, batch: Any, last: bool) -> torch.Tensor:
        self._micro_batch.enter_context(self._accelerator.accumulate(self._wrapped))
        assert self._accelerator.sync_gradients == last
        return self._call(batch)

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self._accelerator.backward(loss)

    def step(self, last: bool) -> None:
        if last:
            self._before_update()
        self._optimizer.step()
        if last and self._masters:
            self._masters.give_weights()
        self._optimizer.zero_grad(set_to_none=True)
        self._micro_batch.close()

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        return self._bare

    def close(self) -> None:
        _forget()

    def _before_update(self) -> None:
        if self._scaler.is_enabled():
            # Accelerate unscales for its own fp16 only, and would clip scaled gradients.
            self._scaler.unscale_(self._bare)
            self._skipped = any_of(self._scaler._found_inf_per_device(self._bare).values())
        if self._masters:
            self._masters.take_gradients()
        if self.setting.clip_norm is None:
            return
        if self._masters:
            # Accelerate compares parameters by value when they are as many as the model's, which DTensors refuse.
            nn.utils.clip_grad_norm_(self._updated, self.setting.clip_norm)
        else:
            self._accelerator.clip_grad_norm_(self._updated, self.setting.clip_norm)


def _accelerator(setting: Setting, **options: Any) -> Accelerator:
    """An Accelerator that knows of no other, and of nothing but its arguments and the ranks."""
    _forget()
    accumulation = GradientAccumulationPlugin(
        num_steps=setting.accumulation, sync_each_batch=setting.accumulation_sync == "each"
    )
    accelerator = Accelerator(
        device_placement=False,
        mixed_precision="no",
        cpu=setting.device == "cpu",
        gradient_accumulation_plugin=accumulation,
        dynamo_backend="no",
        step_scheduler_with_optimizer=False,
        **options,
    )
    found = (accelerator.num_processes, accelerator.process_index, accelerator.device.type)
    _check(found == (setting.world_size, distributed.get_rank(), setting.device), f"sees (ranks, rank, device) {found}")
    return accelerator


def _forget() -> None:
    """Empty the states that all Accelerators of a process share."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _allow_fsdp2_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Accelerate drops its FSDP plugin on CPU and prepares DDP instead (state.py), though all behind it works."""
    state: Any = accelerator.state
    # Every new AcceleratorState() copies PartialState over what is set here: both have to say it.
    PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = plugin
    # Without a mesh fully_shard takes one of CUDA where there is a card.
    state.parallelism_config = ParallelismConfig()
    names = ("dp_shard_cp",)
    state.device_mesh = init_device_mesh("cpu", (accelerator.num_processes,), mesh_dim_names=names)


def _named_apart(blocks: Iterable[nn.Module]) -> list[str]:
    """Give each block a class of its own and return their names: Accelerate picks units by the name of their class,
    and ignores any other function that picks them."""
    names = []
    for index, block in enumerate(blocks):
        kind = type(block)
        names.append(f"{kind.__name__}_unit{index}")
        block.__class__ = type(names[-1], (kind,), {"__module__": kind.__module__})
    return names


@contextlib.contextmanager
def _no_units_of_its_own(model: nn.Module) -> Iterator[None]:
    """Keeps Accelerate from making units of a model's embeddings and last norm, found by these names."""
    hidden = {
        "base_model_prefix": "no such child",
        "get_input_embeddings": lambda: None,
        "get_output_embeddings": lambda: None,
    }
    kept = {name: vars(model)[name] for name in hidden if name in vars(model)}
    vars(model).update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del vars(model)[name]
        vars(model).update(kept)


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(f"Accelerate {what}: it would train something else")
