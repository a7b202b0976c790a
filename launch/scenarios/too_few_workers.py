"""Images are read and decoded by the process that trains."""

from __future__ import annotations

import contextlib

from ...data.generate import ensure_dataset
from ...data.spec import DatasetSpec
from ..dataset import renderer_init
from ._contract import Planted, Scenario


def _with(size: float, workers: int) -> Planted:
    spec = DatasetSpec(train_samples=64, val_samples=8, width=800, height=450, cameras=6, samples_per_shard=16, seed=0)
    folder = ensure_dataset(spec, worker_init=renderer_init())
    options = {"model": "nano", "data": str(folder), "micro_batch": round(size), "workers": workers}
    # One thread trains: loader processes need a core that is free.
    return Planted(
        options=options | ({"prefetch": 4} if workers else {}),
        around=lambda: contextlib.nullcontext((("env", "OMP_NUM_THREADS=1"),)),
    )


scenario = Scenario(
    name="too_few_workers",
    says="images of 800x450 are read and decoded by the process that trains",
    label="input_bound",
    plant=lambda strength, world_size: _with(strength, 0),
    remove=lambda strength, world_size: _with(strength, 1),
    strengths=(4, 8),
    whole=round,
    unit="samples a batch",
    world_sizes=(1,),
)
