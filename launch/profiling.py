"""The profiler window: a few steps under torch's profiler after the measured ones, on all ranks together.

Like all steps after the measured ones they change no parameter: the learning rate is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed

from ..profiles.capture.probe import Probe
from ..profiles.capture.profiler import Profiler
from ..profiles.capture.ranges import RangedProbe
from ..profiles.records import Role
from .assemble import Job
from .loop import train
from .schedule import Step

# Steps after the window that count for nothing: what the profiler has put into caches and allocators is gone by then.
SETTLE_STEPS = 3


def profile_steps(
    job: Job, batches: Iterator[Any], to_device: Callable[[Any], Any], probe: Probe, first: int, count: int
) -> None:
    """Run `count` steps under the profiler and a few after it, from step `first` on.

    A profiler that fails is noted in the run's records, and the steps run without it: all ranks do the same.
    """
    profiler = Profiler(job.folder.trace_file(job.rank.rank), job.device, count)
    with probe.event("profiler", first - 1):
        profiler.start()
    distributed.barrier()
    # The first step under it pays for what it sets up, and is in no window.
    _steps(job, batches, to_device, probe, "settle", first, 1)
    first += 1
    _steps(job, batches, to_device, RangedProbe(probe, torch.profiler.record_function), "profiled", first, count)
    with probe.event("profiler", first + count - 1) as values:
        profiler.stop()
        profiler.export()
        if profiler.failed is not None:
            values["failed"] = profiler.failed
    distributed.barrier()
    _steps(job, batches, to_device, probe, "settle", first + count, SETTLE_STEPS)


def _steps(
    job: Job,
    batches: Iterator[Any],
    to_device: Callable[[Any], Any],
    probe: Probe | RangedProbe,
    role: Role,
    first: int,
    count: int,
) -> None:
    samples = job.setting.micro_batch * job.setting.accumulation
    steps = [Step(index=first + i, role=role, lr=0.0, samples=samples) for i in range(count)]
    train(job.run, batches, steps, probe, to_device)
