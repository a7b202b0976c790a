"""What a run does after its measured steps, with the learning rate at 0: profiled steps, memory, and the tail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..profiles.capture.comm import CommRecorder
from ..profiles.capture.probe import Probe
from ..profiles.capture.timeline import Timeline
from ..profiles.records import Record
from .assemble import Job
from .memory_step import follow_memory
from .profiling import profile_steps
from .supervision.pulse import Pulse
from .tail import Tail


def afterwards(
    job: Job,
    batches: Iterator[Any],
    to_device: Callable[[Any], Any],
    probe: Probe,
    pulse: Pulse,
    *,
    timeline: Timeline,
    write: Callable[[Record], None],
    comm: CommRecorder | None,
    combine: Callable[[list[int]], list[int]] | None,
    stop: Callable[[], bool],
    stop_after_step: Callable[[], bool],
) -> bool:
    """Whether the ranks are at one place when it is over; a step of memory that failed may have parted them."""
    config, step_seconds = job.config, pulse.median_seconds()
    if config.profile_steps:
        profile_steps(job, batches, to_device, probe, _after(pulse), config.profile_steps)
    if stop():
        return True
    if config.memory_step == "on" and not follow_memory(job, batches, to_device, probe, write, _after(pulse)):
        return False
    if config.counterfactual and not stop():
        tail = Tail(
            job=job,
            batches=batches,
            to_device=to_device,
            probe=probe,
            timeline=timeline,
            write=write,
            comm=comm,
            combine=combine,
            stop=stop,
            stop_after_step=stop_after_step,
            at=pulse.at,
            tell=pulse.tail,
        )
        tail.run(_after(pulse), step_seconds)
    return True


def _after(pulse: Pulse) -> int:
    """The step after the last one."""
    return 0 if pulse.step is None else pulse.step + 1
