"""What rules look at: a run's summary and records, and what a step would save without some of its seconds."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...records import EventRecord
from ..communication import Communication, communication
from ..load import Run
from ..statistics import block_bootstrap_mean
from ..straggler import own_phases
from .finding import BETWEEN, COMMUNICATION, Finding, Headroom
from .host import CoreUse, core_use, major_faults_per_step, memory_stalls
from .thresholds import LIMITS, Thresholds
from .traced import trace_mean

CRITICAL_PATH = "the slowest rank's own time in each measured step with and without it"
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
    def own_loop(self) -> bool:
        """The job runs under a loop of its own: options of `scalelab run` are no way to change it."""
        return self.run.own_loop

    def again(self, option: str, value: Any) -> str:
        """How to run it again with `option` of `scalelab run`; where that was given, only its end was lacking."""
        flag = f"--{option.replace('_', '-')}"
        if not self.own_loop and self.config.get(option) not in (None, False, 0, "off"):
            return f"the run again to its end ({flag} was on)"
        what = "the model under scalelab run" if self.own_loop else "the run again"
        return f"{what} with {flag}{'' if value is True else f' {value}'}"

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
        for event in self.between:
            found[place[event.step]] += event.seconds / len(self.run.ranks)
        return found

    @functools.cached_property
    def between(self) -> list[EventRecord]:
        """Events of all ranks behind measured steps that come again and again: not the last one's checkpoint and
        evaluation, where only the end asked for them."""
        steps, config = set(self.run.complete_steps), self.config
        last = (config.get("warmup") or 0) + (config.get("steps") or 0) - 1

        def comes_again(event: EventRecord) -> bool:
            every = config.get({"checkpoint": "save_every", "evaluation": "eval_every"}.get(event.event, ""))
            return not (every and event.step == last and (event.step + 1) % every)

        events = [event for rank in self.run.ranks for event in rank.events if event.step in steps]
        return [event for event in events if event.event != "profiler" and comes_again(event)]

    @functools.cached_property
    def step_seconds(self) -> float:
        """A step with what lies between steps: the time by which shares are told."""
        return float(self.run.step_seconds.mean() + self.between_seconds.mean())

    def share(self, seconds: float) -> float:
        return seconds / self.step_seconds

    def counts(self, finding: Finding) -> bool:
        """Whether a finding is large enough, and sure enough, to be a verdict; one that is no matter of time is."""
        if (headroom := finding.headroom) is None:
            return finding.verdict
        low = None if headroom.ci95 is None else self.share(headroom.ci95[0])
        least, surely = self.limits.least_share, self.limits.least_low_share
        return self.share(headroom.seconds) >= least and low is not None and low > surely

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

    def of_known_count(self, seconds: np.ndarray) -> Headroom:
        """What comes as often as it is planned to, `seconds` each time, per measured step: how long it takes has a
        spread (Student's interval), how often it comes has none. Of a single time none is known."""
        steps, count = len(self.run.complete_steps), len(seconds)
        total = float(seconds.sum()) / steps
        if count < 2:
            return Headroom(seconds=total, ci95=(0.0, 2 * total), method=SUM)
        from scipy import stats  # half a second to import: for those that need it

        half = float(stats.t.ppf(0.975, count - 1) * stats.sem(seconds)) * count / steps
        return Headroom(seconds=total, ci95=(max(0.0, total - half), total + half), method=SUM)

    def spread(self, seconds: np.ndarray) -> dict[str, np.ndarray]:
        """`seconds` of each rank and step, laid to its phases in proportion to their length: in which of them they fell
        is not known."""
        part = np.minimum(seconds / np.maximum(self.own_total, 1e-12), 1.0)
        return {name: part * own for name, own in self.own.items()}

    def computing(self, seconds: np.ndarray) -> dict[str, np.ndarray]:
        """`seconds` in which a thread could have run, laid to the phases likewise; to `data`, where ranks mostly wait,
        only what the others have no room for."""
        busy = self.own_total - self.own["data"]
        part = np.minimum(seconds / np.maximum(busy, 1e-12), 1.0)
        rest = np.minimum(np.maximum(seconds - busy, 0.0), self.own["data"])
        return {name: rest if name == "data" else part * own for name, own in self.own.items()}

    def _recorded(self, name: str) -> np.ndarray | None:
        """Number `name` of each step; None where a step has none."""
        found = self.run.column(name)
        return None if np.isnan(found).any() else found

    @functools.cached_property
    def run_delay(self) -> np.ndarray | None:
        """How long each rank's thread waited for a core."""
        return self._recorded("run_delay_seconds")

    @functools.cached_property
    def on_core(self) -> np.ndarray | None:
        """How long each rank's thread was on a core; None on a device of its own, where it only launches."""
        return self._recorded("on_core_seconds") if self.device == "cpu" else None

    @functools.cached_property
    def garbage(self) -> np.ndarray | None:
        """The pauses of Python's garbage collector."""
        return self._recorded("gc_seconds")

    @functools.cached_property
    def recompute(self) -> np.ndarray | None:
        """What went into computing activations again."""
        return self._recorded("recompute_seconds")

    @functools.cached_property
    def held(self) -> dict[str, np.ndarray] | None:
        """What each rank's batches held in each step, by name; None where a rank did not record it."""
        steps, each = self.run.complete_steps, self.config["grad_accumulation"]
        if each is None:
            return None
        rows: dict[str, list[np.ndarray]] = {}
        for rank in self.run.ranks:
            if rank.batches is None or len(rank.batches.elements) < each * len(steps):
                return None
            for name, counts in {"elements": rank.batches.elements, **rank.batches.real}.items():
                found = np.asarray(counts[: each * len(steps)], dtype=np.float64)
                rows.setdefault(name, []).append(found.reshape(len(steps), each).sum(axis=1))
        return {name: np.stack(each) for name, each in rows.items() if len(each) == len(self.run.ranks)}

    @functools.cached_property
    def operators(self) -> tuple[dict[str, int], dict[str, float]] | None:
        """By phase: operators of a step, the most of any rank, and what a small one costs the host, mean over ranks."""
        found = [
            (step.operators, step.operator_seconds_by_phase)
            for rank in self.run.ranks
            if (step := rank.memory_step) and step.operators is not None and step.operator_seconds_by_phase is not None
        ]
        if not found:
            return None
        costs = [each for _, each in found]
        return (
            max((calls for calls, _ in found), key=lambda calls: sum(calls.values())),
            {phase: float(np.mean([each[phase] for each in costs])) for phase in costs[0]},
        )

    @functools.cached_property
    def threads_computing(self) -> int:
        """Threads of all ranks that compute, on all hosts of the run."""
        return self.world_size * self.run.run_json.get("threads_per_rank", 1)

    @functools.cached_property
    def threads_wanted(self) -> int:
        """The same, with loader processes."""
        return self.threads_computing + self.world_size * (self.config.get("workers") or 0)

    @functools.cached_property
    def core_use(self) -> list[CoreUse] | None:
        """What each host's cores did over the measured steps; None where it was not read often enough."""
        return core_use(self.run)

    @functools.cached_property
    def memory_stalls(self) -> Headroom | None:
        """Seconds a step in which something waited for memory; None where that is not known."""
        return memory_stalls(self.run, self.step_seconds)

    @functools.cached_property
    def major_faults_per_step(self) -> float | None:
        return major_faults_per_step(self.run)

    @functools.cached_property
    def memory_used_share(self) -> float | None:
        """The highest share of its memory limit that any host's reading shows."""
        shares = [
            reading.memory_used_bytes / reading.memory_limit_bytes
            for host in self.run.hosts
            for reading in host
            if reading.memory_used_bytes is not None and reading.memory_limit_bytes
        ]
        return max(shares, default=None)

    @functools.cached_property
    def trace_mean(self) -> dict[str, Any] | None:
        """Per traced step of a device, mean over ranks; None without devices in a trace."""
        return trace_mean(self.summary)

    def ranks_by(self, values: Sequence[float] | np.ndarray) -> list[tuple[int, float]]:
        """Rank and value, the largest first."""
        rows = [(rank.rank, float(value)) for rank, value in zip(self.run.ranks, values, strict=True)]
        return sorted(rows, key=lambda row: -row[1])


def milliseconds(seconds: float) -> str:
    """For a sentence: three digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
