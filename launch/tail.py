"""Steps after the measured ones in which one cause of their time is taken away: counterfactuals, and the bare loop.

Blocks of steps with and without the cause alternate as A B B A, so that what drifts hits both alike: A, then for each
cause B B A, several rounds of it where steps are short; and in each round a block in which the probe's calls are timed.
The learning rate is 0 throughout, so that the parameters are in the end, bit for bit, what they were before.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import distributed

from ..profiles.capture.block import BlockTimer
from ..profiles.capture.comm import CommRecorder, Mode
from ..profiles.capture.probe import Probe
from ..profiles.capture.timeline import Timeline
from ..profiles.records import BlockRecord, Cause, Record, Role
from . import recompute
from .assemble import Job
from .errors import NumericError
from .loop import train
from .schedule import Step

BLOCK_STEPS = 20
# The first steps of a block still belong to the one before it: caches, and what other ranks were doing.
LEAST_DROPPED = 2
# A block that takes longer may be left after each step when the run is to end.
LONG_SECONDS = 2.0
# Rounds of all blocks by the seconds of a step: the shorter it is, the more of them can be had.
ROUNDS = ((0.1, 4), (0.5, 3), (float("inf"), 2))


@dataclass(frozen=True, kw_only=True)
class Tail:
    """What the tail needs of a rank's run. `stop` is asked on all ranks together, between blocks, and `stop_after_step`
    within long ones; `at` hears where the rank is while nothing is measured, `tell` how many blocks of how many are
    done, and about how many seconds the rest takes."""

    job: Job
    batches: Iterator[Any]
    to_device: Callable[[Any], Any]
    probe: Probe
    timeline: Timeline
    write: Callable[[Record], None]
    comm: CommRecorder | None
    combine: Callable[[list[int]], list[int]] | None
    stop: Callable[[], bool]
    stop_after_step: Callable[[], bool] = lambda: False
    at: Callable[[int | None, str | None], None] = lambda step, phase: None
    tell: Callable[[int, int, float], None] = lambda done, of, seconds: None
    clock: Callable[[], float] = time.monotonic

    def run(self, first: int, step_seconds: float) -> None:
        """Run it from step `first` on. `step_seconds` decides how many rounds; the slowest rank's counts."""
        microseconds = round(step_seconds * 1e6)
        if self.combine is not None:
            (microseconds,) = self.combine([microseconds])
        rounds = next(count for limit, count in ROUNDS if microseconds * 1e-6 < limit)
        causes = self.causes()
        plan: list[tuple[int, Cause | None]] = [(0, None)]
        for number in range(rounds):
            for cause in causes:
                plan += [(number, cause), (number, cause), (number, None)]
            plan += [(number, "timed"), (number, None)]
        block_seconds = microseconds * 1e-6 * (self.dropped + BLOCK_STEPS)
        leave = self.stop_after_step if block_seconds > LONG_SECONDS else lambda: False
        begin = self.clock()
        for done, (number, cause) in enumerate(plan):
            each = (self.clock() - begin) / done if done else block_seconds
            self.tell(done, len(plan), (len(plan) - done) * each)
            failed = not self._block(first, number, cause, leave)
            first += self.dropped + BLOCK_STEPS
            if self._any(failed) or self.stop():
                return

    def _any(self, flag: bool) -> bool:
        return flag if self.combine is None else bool(self.combine([flag])[0])

    def causes(self) -> list[Cause]:
        """What can be taken away from this run."""
        config = self.job.config
        found: list[Cause] = ["bare"]
        if self.comm is not None:
            # What the engine sends, in C++, comes by Python in a bare step too: a step in which it does twice tells
            # what that costs.
            if self.comm.engine_seen:
                found.append("passed_twice")
            found.append("free_wire")
        found.extend(("cached_batch", "no_optimizer"))
        if config.checkpointing != "none" and not config.compile:
            found.append("no_recompute")
        return found

    @property
    def dropped(self) -> int:
        """Steps at the begin of a block that are left out: what loaders have ready is used up by then. A loader of the
        user's own is drawn from by a thread that holds `prefetch` batches ready, whatever its own processes hold."""
        config = self.job.config
        return max(LEAST_DROPPED, 2 * (config.prefetch or 0) * max(1, config.workers or 0))

    def _block(self, first: int, number: int, cause: Cause | None, leave: Callable[[], bool]) -> bool:
        """Whether it came to its end: numbers on a free wire are not the model's, and may overflow."""
        count = self.dropped + BLOCK_STEPS
        bare = cause in ("bare", "passed_twice")
        role: Role = "bare" if bare else "counterfactual"
        samples = self.job.setting.micro_batch * self.job.setting.accumulation
        steps = [Step(index=first + i, role=role, lr=0.0, samples=samples) for i in range(count)]
        batches = self.batches
        if cause == "cached_batch":
            batches = itertools.repeat(next(self.batches))
        timer = BlockTimer(None if bare else self.probe, self.timeline, timed=cause == "timed", at=self.at)
        distributed.barrier()
        try:
            with self._without(cause):
                train(self.job.run, batches, steps, timer, self.to_device, stop=leave)
        except NumericError:
            return False
        seconds = timer.seconds()
        if len(seconds) < count:
            return False
        self.write(
            BlockRecord(
                round=number,
                cause=cause,
                dropped=self.dropped,
                step_seconds=seconds,
                call_seconds=timer.call_seconds,
            )
        )
        return True

    def _without(self, cause: Cause | None) -> AbstractContextManager[None]:
        if cause == "free_wire" and self.comm is not None:
            return self.comm.free_wire()
        if cause == "no_optimizer":
            return _no_update(self.job.run.torch_optimizer)
        if cause == "no_recompute":
            return recompute.nothing_recomputed()
        if cause == "bare":
            return self._bare("pass")
        if cause == "passed_twice":
            return self._bare("pass_twice")
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _bare(self, mode: Mode) -> Iterator[None]:
        """No hook and no record is left: what the loop would be without us, but for the way of collectives."""
        with contextlib.ExitStack() as stack:
            if self.job.finite is not None:
                stack.enter_context(self.job.finite.off())
            if self.comm is not None:
                stack.enter_context(self.comm.off(mode))
            yield


@contextlib.contextmanager
def _no_update(optimizer: Any) -> Iterator[None]:
    """The optimizer's own step does nothing; what its strategy does around it goes on."""
    optimizer.step = lambda *arguments, **options: None
    try:
        yield
    finally:
        del optimizer.step
