"""What is equal in all cells of a sweep: the batch, and what is recorded to tell that they train the same thing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import RunConfig
from ..errors import ConfigError
from ..plan import DEFAULT_MICRO_BATCH
from .options import Request

# Steps that are held against each other, and the fewest: the first has the gradients that all start from, the second
# what an update made of them.
GATE_STEPS = 5
LEAST_GATE_STEPS = 2


def shared_batch(request: Request, worlds: Sequence[int]) -> dict[str, int]:
    """The batch of all cells, as an option of a run: global under strong scaling, else per rank.

    Under strong scaling a smaller world has a larger micro-batch, not more accumulation: each step is the same number
    of forwards and backwards everywhere, so that what smaller batches do to kernels shows as part of what more ranks
    cost. Raises ConfigError for a global batch that some world cannot share evenly.
    """
    micro = request.common.get("micro_batch") or DEFAULT_MICRO_BATCH
    if request.scaling == "weak" or request.best_batch:
        return {"micro_batch": micro}
    accumulation = request.common.get("grad_accumulation", 1)
    largest = max(worlds)
    batch = request.common.get("global_batch") or micro * accumulation * largest
    if "micro_batch" in request.common and batch != micro * accumulation * largest:
        raise ConfigError(
            f"--global-batch {batch} is not --micro-batch {micro} x --grad-accumulation {accumulation} x {largest} "
            "ranks, the most of this sweep: leave one of them out"
        )
    unit = math.lcm(*worlds) * accumulation
    if batch % unit:
        below = batch // unit * unit
        nearest = " or ".join(str(each) for each in (below, below + unit) if each)
        ranks = ",".join(map(str, sorted(worlds)))
        raise ConfigError(
            f"--gpus {ranks}: not all of them can share a global batch of {batch} evenly with --grad-accumulation "
            f"{accumulation}: the nearest that they can is --global-batch {nearest}",
            hint="or --scaling weak, which keeps the micro-batch",
        )
    return {"global_batch": batch}


def gate_steps(warmup: int) -> int:
    """How many steps are held against each other: those of the warm-up, GATE_STEPS at most."""
    return max(LEAST_GATE_STEPS, min(GATE_STEPS, warmup))


def recorded(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with gradient norms recorded in as many steps, unless it says itself what is to be recorded."""
    if given.get("probe") == "off" or "record_grad_norm" in given:
        return dict(given)
    warmup = given.get("warmup", RunConfig.model_fields["warmup"].default)
    return {**given, "record_grad_norm": True, "grad_norm_steps": gate_steps(warmup)}
