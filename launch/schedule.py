"""The steps of a run, decided before it starts: their order, role and learning rate. Pure; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..profiles.records import Role
from .config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step. `index` counts from 0 at the first warm-up step; `samples` are this rank's."""

    index: int
    role: Role
    lr: float
    samples: int


def base_lr(config: RunConfig, global_batch: int) -> float:
    """The learning rate after warm-up: `--lr`, scaled with the global batch as asked.

    Linear: Goyal et al. 2017; square root: Krizhevsky 2014.
    """
    if config.lr_scaling == "none" or config.base_batch is None:
        return config.lr
    ratio = global_batch / config.base_batch
    return config.lr * (ratio if config.lr_scaling == "linear" else math.sqrt(ratio))


def schedule(config: RunConfig, *, steps: int, samples: int, global_batch: int) -> Iterator[Step]:
    """Warm-up steps, then `steps` measured ones. The rate rises linearly over the first `lr_warmup_steps`."""
    full = base_lr(config, global_batch)
    for index in range(config.warmup + steps):
        rise = min(1.0, (index + 1) / config.lr_warmup_steps) if config.lr_warmup_steps else 1.0
        role: Role = "warmup" if index < config.warmup else "measured"
        yield Step(index=index, role=role, lr=full * rise, samples=samples)
