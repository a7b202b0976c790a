"""Ending a run early, in order: a signal sets a flag, and all ranks leave the loop after the same step.

A rank that left alone would leave its peers waiting in a collective. So the flags are combined by an all-reduce, on a
group of its own, now and then: after the first step, then about every `CHECK_SECONDS`, at steps that all ranks know.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

from .errors import Exit

CHECK_SECONDS = 1.0
# Rising: when ranks were sent different signals, the most urgent one counts.
SIGNALS = {
    signal.SIGUSR1: Exit.PREEMPTED,
    signal.SIGINT: Exit.INTERRUPTED,
    signal.SIGHUP: Exit.TERMINATED,
    signal.SIGTERM: Exit.TERMINATED,
}
_URGENCY = (Exit.OK, Exit.PREEMPTED, Exit.INTERRUPTED, Exit.TERMINATED)


# The largest of each number over all ranks; called on all of them together.
Combine = Callable[[list[int]], list[int]]


class Stopping:
    """This rank's wish to stop, and what all ranks agreed on."""

    def __init__(self, combine: Combine | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`combine` is None for a rank that is alone."""
        self._combine = combine
        self._clock = clock
        self._wish = 0
        self._step = 0
        self._next_check = 1
        self._checked_step = 0
        self._checked_at = clock()
        self.agreed = Exit.OK
        """What the run is to end with early; OK while it is to go on."""

    def listen(self) -> None:
        """Take the signals of `SIGNALS`. A lost terminal (SIGHUP) is the supervisor's to act on, or not (`nohup`)."""
        for number in SIGNALS:
            if number != signal.SIGHUP:
                signal.signal(number, self._arrived)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self._wish = max(self._wish, _URGENCY.index(SIGNALS[signal.Signals(number)]))

    def after_step(self) -> bool:
        """Called on all ranks after each step: whether the loop ends here."""
        self._step += 1
        if self._combine is None:
            self.agreed = _URGENCY[self._wish]
        elif self._step >= self._next_check:
            self._check(self._combine)
        return self.agreed is not Exit.OK

    def now(self) -> bool:
        """Called on all ranks together, between parts of a run that may each take long: whether it ends here."""
        wish = self._wish if self._combine is None else self._combine([self._wish])[0]
        self.agreed = _URGENCY[wish]
        return self.agreed is not Exit.OK

    def _check(self, combine: Combine) -> None:
        now = self._clock()
        steps = self._step - self._checked_step
        per_step = (now - self._checked_at) / steps
        # The slowest rank's wish for the distance to the next check: the largest of the negated numbers.
        distance = max(1, int(CHECK_SECONDS / per_step)) if per_step > 0 else 1
        wish, negated = combine([self._wish, -distance])
        # At most doubled: the first steps are slow, and say little.
        distance = min(-negated, 2 * steps)
        self.agreed = _URGENCY[wish]
        self._next_check, self._checked_step, self._checked_at = self._step + distance, self._step, self._clock()
