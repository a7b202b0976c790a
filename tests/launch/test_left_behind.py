"""A strategy leaves nothing of its library in the process: no replaced function, no hook, no variable, no model."""

from __future__ import annotations

import gc
import os
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from scalelab.launch import strategies
from scalelab.launch.ranks import Rank
from scalelab.launch.setting import Setting
from torch import distributed
from torch.utils import checkpoint

from tests.support.micro_model import WIDTH
from tests.support.ranks import run_ranks
from tests.support.training import MICRO_BATCH, micro_batches, records_of, sharded, supported

ENGINES = [(name, engine) for name in strategies.names() for engine in strategies.load(name).engines]
PLACES = {
    "torch": torch,
    "functional": torch.nn.functional,
    "distributed": distributed,
    "Tensor": torch.Tensor,
    "Module": torch.nn.Module,
    "Parameter": torch.nn.Parameter,
    "Linear": torch.nn.Linear,
    "autograd": torch.autograd,
    "Function": torch.autograd.Function,
    "Optimizer": torch.optim.Optimizer,
    "checkpoint": checkpoint,
}
# Set once for the whole process, on purpose: how DeepSpeed finds the device and counts local ranks.
KEPT_VARIABLES = {"DS_ACCELERATOR", "LOCAL_SIZE"}


def fingerprint() -> dict[str, Any]:
    """The functions of torch by place and name, its global hooks and modes, and the environment."""
    found: dict[str, Any] = {}
    for place, holder in PLACES.items():
        for name, value in vars(holder).items():
            if callable(value):
                found[f"{place}.{name}"] = id(value)
    module = torch.nn.modules.module
    hooks = [name for name in vars(module) if name.startswith("_global_") and hasattr(getattr(module, name), "__len__")]
    assert len(hooks) >= 5
    found |= {name: len(getattr(module, name)) for name in hooks}
    found["modes"] = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_float32_matmul_precision())
    found["accelerate"] = sorted({**PartialState._shared_state, **AcceleratorState._shared_state})
    found["threads"] = torch.get_num_threads()
    return found | {name: value for name, value in os.environ.items() if name not in KEPT_VARIABLES}


def train_and_leave(rank: Rank, name: str, setting: Setting) -> tuple[list[str], int]:
    """What two runs one after the other changed, and how many of their models are still alive."""
    models = []
    before = fingerprint()
    for _ in range(2):
        run = sharded(name, setting, WIDTH)
        records_of(run, micro_batches(rank.rank, setting))
        models.append(weakref.ref(run.module))
        run.close()
        del run
    gc.collect()
    after = fingerprint()
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return changed, sum(model() is not None for model in models)


@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_nothing_stays_behind(name: str, engine: str) -> None:
    """After training and closing, torch is as it was and the models are freed."""
    strategy = strategies.load(name)
    world_size = 1 if strategy.unsupported(Setting(world_size=2, device="cpu")) else 2
    base = Setting(world_size=world_size, device="cpu", micro_batch=MICRO_BATCH, checkpointing="selective")
    (setting,) = supported(strategy, [replace(base, engine=engine, precision="bf16")])
    for changed, alive in run_ranks(train_and_leave, world_size, name, setting):
        assert (changed, alive) == ([], 0)
