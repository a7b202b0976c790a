"""One rank's steps as columns: a run of a thousand ranks is held as arrays, not as objects."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from ..records import PHASES, SAME_PHASE, CommRecord, StepRecord

# Fields of a step that are one number each, or null.
NUMBERS = (
    "start_seconds",
    "seconds",
    "host_data_seconds",
    "samples",
    "lr",
    "grad_square_sum",
    "grad_replicas",
    "recompute_seconds",
    "gc_seconds",
    "on_core_seconds",
    "run_delay_seconds",
)
_UNKNOWN_NS = -1


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps in their order. `numbers` has the fields of `NUMBERS` by name, NaN where null; `phases` seconds by phase,
    0 where a step had none of it. `losses` are the sum over a step's micro-batches, NaN where one of
    them is unknown, and how many there were. `begin_ns` is -1 where unknown."""

    step: np.ndarray
    measured: np.ndarray
    skipped: np.ndarray
    begin_ns: np.ndarray
    numbers: dict[str, np.ndarray]
    phases: dict[str, np.ndarray]
    losses: tuple[np.ndarray, np.ndarray]
    comm: StepComms

    @classmethod
    def of(cls, records: Sequence[StepRecord]) -> Steps:
        """The columns of `records`."""
        numbers = np.array(list(map(attrgetter(*NUMBERS), records)), dtype=np.float64).reshape(-1, len(NUMBERS))
        begins = (record.begin_ns for record in records)
        return cls(
            step=np.array([record.step for record in records], dtype=np.int64),
            measured=np.array([record.role == "measured" for record in records], dtype=bool),
            skipped=np.array([record.skipped for record in records], dtype=bool),
            begin_ns=np.array([_UNKNOWN_NS if begin is None else begin for begin in begins], dtype=np.int64),
            numbers=dict(zip(NUMBERS, np.ascontiguousarray(numbers.T), strict=True)),
            phases={
                name: np.array([record.phases.get(name, 0.0) for record in records], dtype=np.float64)
                for name in PHASES
            },
            losses=_losses(records),
            comm=StepComms.of([record.comm for record in records]),
        )

    def __len__(self) -> int:
        return len(self.step)

    @functools.cached_property
    def place(self) -> dict[int, int]:
        """Where each measured step is, by its number."""
        return {int(self.step[place]): int(place) for place in np.flatnonzero(self.measured)}


def _losses(records: Sequence[StepRecord]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.array([len(record.losses) for record in records], dtype=np.int64)
    flat = np.array(list(itertools.chain.from_iterable(record.losses for record in records)), dtype=np.float64)
    return np.bincount(np.repeat(np.arange(len(records)), counts), flat, minlength=len(records)), counts


@dataclass(frozen=True, kw_only=True)
class StepComms:
    """Collectives by step: the plan that each step ran, -1 where that was not recorded, and times in nanoseconds from
    the step's begin. Those of step i lie in `handed_in` and `ended` (NaN where no end was seen) from `first[i]` up to
    `first[i + 1]`; `waits` has rows of collective, begin and end, `wait_step` the step of each, and `wait_phase` the
    place of its phase in PHASES, -1 for none, SAME_PHASE for that of its collective."""

    plan: np.ndarray
    exact: np.ndarray
    first: np.ndarray
    handed_in: np.ndarray
    ended: np.ndarray
    wait_step: np.ndarray
    waits: np.ndarray
    wait_phase: np.ndarray

    @classmethod
    def of(cls, records: Sequence[CommRecord | None]) -> StepComms:
        """The columns of `records`, one for each step."""
        there = [record for record in records if record is not None]
        handed_in = np.array(list(itertools.chain.from_iterable(each.handed_in_ns for each in there)), dtype=np.float64)
        ended = np.array(list(itertools.chain.from_iterable(each.ended_ns for each in there)), dtype=np.float64)
        if len(handed_in) != len(ended):
            raise ValueError(f"{len(handed_in)} collectives were handed in, but {len(ended)} have an end or none")
        counts = [0 if record is None else len(record.handed_in_ns) for record in records]
        waits = [0 if record is None else len(record.waits) // 3 for record in records]
        numbers = itertools.chain.from_iterable(each.waits for each in there)
        phase = np.full(sum(waits), SAME_PHASE, dtype=np.int8)
        first = np.cumsum([0, *waits])
        for number, record in enumerate(records):
            if record is not None and record.waited_in:
                phase[first[number] + np.array(record.waited_in[::2])] = record.waited_in[1::2]
        return cls(
            plan=np.array([-1 if record is None else record.plan for record in records], dtype=np.int64),
            exact=np.array([record is not None and record.exact for record in records], dtype=bool),
            first=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            handed_in=handed_in,
            ended=ended,
            wait_step=np.repeat(np.arange(len(records)), waits),
            waits=np.fromiter(numbers, dtype=np.int64, count=3 * sum(waits)).reshape(-1, 3),
            wait_phase=phase,
        )

    def __len__(self) -> int:
        return len(self.plan)

    def take(self, rows: np.ndarray) -> StepComms:
        """The steps `rows`, in that order."""
        counts = np.diff(self.first)[rows]
        places = _ranges(self.first[:-1][rows], counts)
        waits = np.bincount(self.wait_step, minlength=len(self))
        starts = np.cumsum(waits) - waits
        of_waits = _ranges(starts[rows], waits[rows])
        return StepComms(
            plan=self.plan[rows],
            exact=self.exact[rows],
            first=np.concatenate([[0], np.cumsum(counts)]),
            handed_in=self.handed_in[places],
            ended=self.ended[places],
            wait_step=np.repeat(np.arange(len(rows)), waits[rows]),
            waits=self.waits[of_waits],
            wait_phase=self.wait_phase[of_waits],
        )


def _ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The whole numbers of [begin, begin + length) of each, one after the other."""
    return np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
