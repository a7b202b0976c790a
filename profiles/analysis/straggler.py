"""Which rank the others wait for, and from which phase on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .collectives import Exposed
from .load import Run
from .statistics import block_bootstrap_mean

LEAST_SHARE_OF_STEP = 0.05
"""Of the step's mean: a smaller excess, however sure, is nobody's concern."""
UNATTRIBUTED = "unattributed"
_NOBODY = "no rank is late:"


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """`share` of the steps had `rank` last; its own time exceeds the others' mean by `excess_seconds` a step, most of
    which lies in phase `cause`."""

    rank: int
    share: float
    cause: str
    excess_seconds: float


def find_straggler(run: Run, exposed: Exposed, last: np.ndarray | None) -> Straggler | str:
    """The rank with the largest own time (step - blocked) if it is later than chance has it; else why there is none.

    Its excess over the other ranks' mean must be above 5 % of the step, by the lower end of its interval, and it must
    be the last one in more steps than ranks that are alike would be, by the lower end of Wilson's interval (1927).
    """
    steps = run.step_seconds
    own = steps - exposed.total
    if own.shape[1] < 3:
        return f"too few measured steps to tell ({own.shape[1]})"
    if len(own) < 2:
        return "the records of other ranks are missing"
    rank = int(own.mean(axis=1).argmax())
    excess = _excess(own, rank)
    interval = block_bootstrap_mean(excess.tolist())
    mean, least = float(excess.mean()), LEAST_SHARE_OF_STEP * float(steps.mean())
    if interval is None or interval[0] <= least:
        return f"{_NOBODY} rank {rank} has the most own time, {_why_not_late(mean, interval, float(steps.mean()))}"
    if last is None:
        return "the order in which ranks came to their collectives is not known"
    share = float((last == rank).mean())
    if _wilson_low(share, len(last)) <= 1 / len(own):
        return (
            f"{_NOBODY} rank {rank} has the most own time, {mean * 1e3:.2f} ms a step above the others' mean, but came "
            f"last in only {share:.0%} of the steps, as ranks that are alike may ({1 / len(own):.0%})"
        )
    by_phase = {name: _excess(values, rank).mean() for name, values in own_phases(run, exposed).items()}
    return Straggler(rank=rank, share=share, cause=max(by_phase, key=lambda name: by_phase[name]), excess_seconds=mean)


def _why_not_late(mean: float, interval: tuple[float, float] | None, step: float) -> str:
    """Which criterion an excess of `mean` seconds did not meet."""
    told = f"{mean * 1e3:.2f} ms a step above the others' mean, {mean / step:.1%} of it"
    if mean <= LEAST_SHARE_OF_STEP * step:
        return f"{told}: not more than {LEAST_SHARE_OF_STEP:.0%}"
    if interval is None:
        return f"{told}, of which no interval is known"
    bounds = f"[{interval[0] * 1e3:.2f}, {interval[1] * 1e3:.2f}] ms"
    if interval[0] <= 0:
        return f"{told}, but its interval {bounds} includes 0"
    return f"{told}, but its interval {bounds} begins below {LEAST_SHARE_OF_STEP:.0%}"


def own_phases(run: Run, exposed: Exposed | None) -> dict[str, np.ndarray]:
    """Seconds by (rank, step) of each phase without what it was blocked on communication, if that is known; the rest is
    unattributed."""
    blocked = exposed or Exposed(total=np.zeros(()), phases={})
    steps = run.step_seconds
    found = {name: raw - blocked.phases.get(name, 0.0) for name, raw in run.phase_seconds.items()}
    found[UNATTRIBUTED] = steps - blocked.total - sum(found.values())
    return found


def _excess(values: np.ndarray, rank: int) -> np.ndarray:
    return values[rank] - np.delete(values, rank, axis=0).mean(axis=0)


def _wilson_low(share: float, count: int, z: float = 1.96) -> float:
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - spread) / (1 + z * z / count)
