"""What rules look at: a run's summary and records, and what a step would save without some of its seconds."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..communication import Communication, communication
from ..load import Run
from ..statistics import block_bootstrap_mean
from ..straggler import own_phases
from .finding import BETWEEN, COMMUNICATION, Headroom
from .thresholds import LIMITS, Thresholds

CRITICAL_PATH = "the slowest rank's own time in each measured step with and without it"
COUNTERFACTUAL = "steps of this run with and without it, in turn"
SUM = "what it took of the measured steps"


@dataclass(frozen=True)
class Facts:
    """A run under diagnosis. Matrices are (ranks, complete measured steps), in seconds."""

    run: Run
    summary: Mapping[str, Any]
    limits: Thresholds = LIMITS

    @property
    def config(self) -> Mapping[str, Any]:
        return self.run.run_json["config"]

    @property
    def device(self) -> str:
        return self.config["device"]

    @property
    def world_size(self) -> int:
        return self.run.run_json["world_size"]

    @functools.cached_property
    def known(self) -> Communication:
        """What is known of communication."""
        return communication(self.run)

    @functools.cached_property
    def own(self) -> dict[str, np.ndarray]:
        """Each rank's own time by phase, without what it was blocked on communication where that is known."""
        return own_phases(self.run, self.known.exposed)

    @functools.cached_property
    def own_total(self) -> np.ndarray:
        return np.sum(list(self.own.values()), axis=0)

    @functools.cached_property
    def between_seconds(self) -> np.ndarray:
        """Seconds of events behind each measured step, (steps,): mean over ranks."""
        steps = self.run.complete_steps
        place = {step: index for index, step in enumerate(steps)}
        found = np.zeros(len(steps))
        for rank in self.run.ranks:
            for event in rank.events:
                if event.step in place and event.event != "profiler":
                    found[place[event.step]] += event.seconds / len(self.run.ranks)
        return found

    @functools.cached_property
    def step_seconds(self) -> float:
        """A step with what lies between steps: the time by which shares are told."""
        return float(self.run.step_seconds.mean() + self.between_seconds.mean())

    def share(self, seconds: float) -> float:
        return seconds / self.step_seconds

    def saved(self, removed: Mapping[str, np.ndarray]) -> np.ndarray:
        """What each step saves without those seconds: ranks meet in every step, so that the slowest one's own time
        counts; what they are blocked, and what lies between steps, counts by its mean."""
        apart = (COMMUNICATION, BETWEEN)
        inside = [np.asarray(seconds) for phase, seconds in removed.items() if phase not in apart]
        total = np.zeros(self.own_total.shape[1])
        if inside:
            own = self.own_total
            without = own - np.sum(inside, axis=0)
            # Where blocked time is unknown, every rank's own time is the whole step, and the mean is all there is.
            met = self.known.exposed is not None
            total += own.max(axis=0) - without.max(axis=0) if met else (own - without).mean(axis=0)
        for phase in apart:
            if phase in removed:
                total += np.asarray(removed[phase]).mean(axis=0)
        return total

    def headroom(self, removed: Mapping[str, np.ndarray]) -> Headroom:
        """The mean of `saved`, with its interval over the steps of this run."""
        series = self.saved(removed)
        method = CRITICAL_PATH if set(removed) - {COMMUNICATION, BETWEEN} else SUM
        return Headroom(seconds=float(series.mean()), ci95=block_bootstrap_mean(series.tolist()), method=method)

    def counterfactual(self, cause: str) -> Headroom | None:
        """What the tail of the run says that a step saves without `cause`."""
        row = (self.summary.get("counterfactual") or {}).get(cause)
        if row is None:
            return None
        low, high = row["ci95"]
        return Headroom(seconds=row["headroom_seconds"], ci95=(low, high), method=COUNTERFACTUAL)

    def ranks_by(self, values: Sequence[float] | np.ndarray) -> list[tuple[int, float]]:
        """Rank and value, the largest first."""
        rows = [(rank.rank, float(value)) for rank, value in zip(self.run.ranks, values, strict=True)]
        return sorted(rows, key=lambda row: -row[1])


def milliseconds(seconds: float) -> str:
    """For a sentence: three digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
