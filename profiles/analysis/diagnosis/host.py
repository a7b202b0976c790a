"""What the readings of a run's hosts say of its measured steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...used import HostRecord
from ..load import Run
from ..statistics import block_bootstrap_mean
from .finding import Headroom

# Counters have ticks of 10 ms: over a second, a hundredth.
LEAST_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class CoreUse:
    """Of a host's `cores`, how many the run, and others, kept busy on average, and how many the hypervisor took."""

    cores: int
    own: float
    others: float
    stolen: float


def core_use(run: Run) -> list[CoreUse] | None:
    """Of every host; None where readings of one do not span a second of the measured steps."""
    found = []
    for readings in run.hosts:
        within = _within(run, readings)
        if len(within) < 2 or (seconds := (within[-1].at_ns - within[0].at_ns) * 1e-9) < LEAST_SECONDS:
            return None
        first, last = within[0], within[-1]
        own = (last.own_core_seconds - first.own_core_seconds) / seconds
        busy = (last.busy_core_seconds - first.busy_core_seconds) / seconds
        stolen = (last.stolen_core_seconds - first.stolen_core_seconds) / seconds
        found.append(CoreUse(cores=last.cores, own=own, others=max(0.0, busy - own), stolen=stolen))
    return found or None


def memory_stalls(run: Run, step_seconds: float) -> Headroom | None:
    """The share of time in which a task waited for memory, worst host, as seconds of a step."""
    best: Headroom | None = None
    for readings in run.hosts:
        within = _within(run, readings)
        stalls = [reading.memory_stall_seconds for reading in within]
        if len(within) < 2 or None in stalls:
            continue
        shares = np.diff(np.array(stalls, dtype=np.float64)) / (np.diff([each.at_ns for each in within]) * 1e-9)
        interval = block_bootstrap_mean(shares.tolist())
        ci95 = None if interval is None else (interval[0] * step_seconds, interval[1] * step_seconds)
        seconds = float(shares.mean()) * step_seconds
        if best is None or seconds > best.seconds:
            best = Headroom(
                seconds=seconds, ci95=ci95, method="the kernel's count of time in which tasks waited for memory"
            )
    return best


def major_faults_per_step(run: Run) -> float | None:
    """Pages that the ranks had to read from disk, all hosts together."""
    total = 0
    for readings in run.hosts:
        faults = [reading.major_faults for reading in _within(run, readings)]
        if len(faults) < 2 or faults[0] is None or faults[-1] is None:
            return None
        total += max(0, faults[-1] - faults[0])
    return total / len(run.complete_steps) if run.hosts else None


def _within(run: Run, readings: Sequence[HostRecord]) -> list[HostRecord]:
    """Those from the first measured step's begin to the last one's end, on that host's clock. Without hosts' names in
    them, each file's clock is taken to be that of the ranks whose steps it covers."""
    spans = []
    for rank, places in zip(run.ranks, run.places, strict=True):
        begins = rank.steps.begin_ns[places]
        if begins.min() >= 0:
            spans.append((begins[0], begins[-1] + rank.steps.numbers["seconds"][places[-1]] * 1e9))
    covered = [[each for each in readings if begin <= each.at_ns <= end] for begin, end in spans]
    return max(covered, key=len, default=[])
