"""The steps after the measured ones in which memory is followed. The learning rate is 0: no parameter changes a bit."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from ..profiles.capture.allocator import Allocator
from ..profiles.capture.memory_step import MemoryProbe
from ..profiles.capture.operators import OperatorCount, operator_seconds
from ..profiles.capture.probe import Probe
from ..profiles.capture.storages import StorageLog
from ..profiles.capture.sync_lines import SyncLines
from ..profiles.records import MemoryStepRecord, Record
from . import recompute
from .assemble import Job
from .loop import train
from .optimizer import make_optimizer
from .schedule import Step

# Of the last the kinds and the timeline are recorded. What each leaves behind is compared with the one before: three
# differences give an interval.
STEPS = 4


def follow_memory(
    job: Job,
    batches: Iterator[Any],
    to_device: Callable[[Any], Any],
    probe: Probe,
    write: Callable[[Record], None],
    first: int,
) -> bool:
    """Write how memory is used, from step `first` on; on all ranks together.

    False where a step failed, whose error is noted and raised no further: this rank's peers may wait for it in the
    middle of that step, so nothing that ranks do together may follow.
    """
    if job.config.compile:
        why = "operations in compiled blocks are not seen one by one"
        write(MemoryStepRecord(step=first, failed=why))
        return True
    names = {module: name for name, module in job.run.module.named_modules()}
    selective = job.config.checkpointing == "selective"
    syncs = SyncLines(on_cuda=job.device.type == "cuda")
    operators = OperatorCount(then=syncs.heard)
    log = StorageLog(
        job.device.type,
        names,
        kept=recompute.KEPT if selective else frozenset(),
        buckets=job.run.buckets,
        heard=operators.heard,
    )
    allocator = Allocator(job.device) if job.device.type == "cuda" else None
    watch = MemoryProbe(probe, job.run, log, allocator, syncs, operators)
    samples = job.setting.micro_batch * job.setting.accumulation
    steps = [Step(index=first + number, role="memory", lr=0.0, samples=samples) for number in range(STEPS)]
    try:
        with contextlib.ExitStack() as stack:
            if job.finite is not None:
                stack.enter_context(job.finite.off())
            stack.enter_context(recompute.heard_by(log.recomputing))
            train(job.run, batches, steps, watch, lambda batch: watch.followed(to_device(batch)))
    except Exception as error:
        traceback.print_exc()
        # Not the frames of the failed step, which hold all that it made.
        traceback.clear_frames(error.__traceback__)
        write(MemoryStepRecord(step=first, failed=f"a step failed: {type(error).__name__}: {error}"))
        return False
    try:
        costs = operator_seconds(job.device, lambda small: make_optimizer(small, job.setting))
    except Exception:
        traceback.print_exc()
        costs = None
    write(watch.record(steps[-1].index, costs))
    return True
