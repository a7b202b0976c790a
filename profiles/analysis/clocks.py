"""The ranks' clocks side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..records import ClockRecord
from .load import RankRecords, Run


@dataclass(frozen=True)
class Clocks:
    """What to add to each rank's clock at the begin of each complete step, (ranks, steps), to make them one; and by how
    much that may be wrong, 0 where all ranks read the same clock."""

    offsets_ns: np.ndarray
    residual_seconds: float


def clocks(run: Run) -> Clocks | str:
    """The clocks of `run`, or why they cannot be compared.

    Ranks with the same boot id read the same clock. Other hosts' offsets to rank 0's are measured at the begin and the
    end of a run; between the two their drift is taken for even.
    """
    boots = [rank.start.boot_id if rank.start else None for rank in run.ranks]
    steps = run.complete_steps
    offsets = np.zeros((len(run.ranks), len(steps)), dtype=np.int64)
    if None in boots:
        return "a rank's first record, which names its clock, is missing"
    readings: dict[str | None, tuple[ClockRecord, ...]] = {}
    for rank, boot in zip(run.ranks, boots, strict=True):
        if rank.clocks:
            readings[boot] = rank.clocks
    residual = 0
    for index, (rank, boot) in enumerate(zip(run.ranks, boots, strict=True)):
        if boot == boots[0]:
            continue
        known = readings.get(boot, ())
        if len(known) < 2:
            return "the ranks' hosts have clocks of their own, which were not compared both before and after the steps"
        begins = rank.steps.begin_ns[run.places[index]]
        offsets[index] = _offsets(known[0], known[-1], begins)
        residual = max(residual, *(reading.residual_ns for reading in known))
    return Clocks(offsets, residual * 1e-9)


def _offsets(first: ClockRecord, last: ClockRecord, at_ns: np.ndarray) -> np.ndarray:
    """The offset at each moment, on the line through two readings."""
    drift = (last.offset_ns - first.offset_ns) / (last.at_ns - first.at_ns)
    return first.offset_ns + np.rint(drift * (at_ns - first.at_ns)).astype(np.int64)


def wall_clocks_ahead_ns(run: Run) -> dict[int, int] | str:
    """By how much each rank's wall clock, by which a profiler's trace counts, is ahead of rank 0's; or why that is not
    known. A wall clock is tied to the monotonic one by the rank's first record, monotonic ones as in `clocks`."""
    starts = [rank.start for rank in run.ranks]
    first = starts[0] if starts else None
    found = {}
    for rank, start in zip(run.ranks, starts, strict=True):
        if start is None or first is None:
            return "a rank's first record, which names its clock, is missing"
        found[rank.rank] = 0
        if start.boot_id != first.boot_id:
            known = next((each.clocks for each in run.ranks if each.clocks and _boot(each) == start.boot_id), ())
            if not known:
                return "the ranks' hosts have clocks of their own, which were not compared"
            walls = [each.wall_seconds - each.monotonic_seconds for each in (start, first)]
            found[rank.rank] = round((walls[0] - walls[1]) * 1e9) - known[-1].offset_ns
    return found


def _boot(rank: RankRecords) -> str | None:
    return rank.start.boot_id if rank.start else None
