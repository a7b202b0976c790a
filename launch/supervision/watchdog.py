"""When a run is in trouble: a pure look at all ranks of a host. No torch, no clock of its own.

A rank is in trouble when it said so, or when its process is gone without having said that it is done. The ranks of a
host hang when none of them makes progress for the time that their present phase allows; a process that runs none of its
threads hangs whatever its phase, but where torch's profiler sorts and writes its events under the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .pulse import EVENTS, FINAL
from .sighting import Sighting

# A training step may take three times its 99th percentile, and no less than this.
STEP_FACTOR = 3.0
FLOOR_SECONDS = 30.0
# Start-up, the first steps (compilation), evaluations and checkpoints: no percentile says how long they should take.
PATIENT_SECONDS = 600.0
LOCKED_PHASE = "profiler"
# Steps before their percentile says anything.
KNOWN_STEPS = 2


# `lost`: a rank failed or is gone. `hung`: ranks make no progress.
Trouble = Literal["lost", "hung"]


def silence_of(seen: Sighting, seconds: float) -> float:
    """Time without a beat after which that rank counts as not running, where it is `seconds` for most."""
    return max(seconds, PATIENT_SECONDS) if seen.phase == LOCKED_PHASE else seconds


@dataclass(frozen=True)
class Watchdog:
    """`hang_seconds`, when given, replaces every limit; 0 switches the watch for hangs off."""

    hang_seconds: float | None = None

    @property
    def silence_seconds(self) -> float:
        """Time without a beat after which a process counts as not running."""
        return FLOOR_SECONDS if self.hang_seconds is None else self.hang_seconds

    def look(self, ranks: Sequence[Sighting], now: float) -> Trouble | None:
        """What is wrong with `ranks`, all those of one host, at the time `now` of its monotonic clock."""
        if any(seen.state == "failed" or (seen.gone and seen.state not in FINAL) for seen in ranks):
            return "lost"
        if self.hang_seconds == 0:
            return None
        busy = [seen for seen in ranks if seen.state not in FINAL]
        silence = self.silence_seconds
        if any(seen.beat_at is not None and now - seen.beat_at > silence_of(seen, silence) for seen in busy):
            return "hung"
        if busy and all(seen.since is not None and now - seen.since > self.limit(seen) for seen in busy):
            return "hung"
        return None

    def limit(self, seen: Sighting) -> float:
        """Seconds without progress that `seen` may take where it is."""
        if self.hang_seconds is not None:
            return self.hang_seconds
        if seen.patient or seen.step is None or seen.phase in EVENTS:
            return PATIENT_SECONDS
        if seen.steps < KNOWN_STEPS or seen.p99_seconds is None:
            return PATIENT_SECONDS
        return max(STEP_FACTOR * seen.p99_seconds, FLOOR_SECONDS)
