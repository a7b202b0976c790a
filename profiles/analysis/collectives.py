"""What the ranks' collectives did to each other: the records of all ranks on one clock.

For a collective, `ready` is the latest start over ranks. On each rank it is late in [start, ready] and on the wire in
[ready, end]. The rank's timeline is blocked where it waits; |blocked| is exposed and falls to `waiting` (late),
`transfer` (wire) and `queued`, the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..records import PHASES, SAME_PHASE, CollectiveShape
from .columns import StepComms

SECONDS = 1e-9
# ProcessGroupGloo runs this many collectives of a group at once, in the order in which they were handed in
# (torch 2.13, torch/csrc/distributed/c10d/ProcessGroupGloo.hpp, Options::threads).
GLOO_THREADS = 2

Plan = Sequence[CollectiveShape]


@dataclass(frozen=True)
class RankComm:
    """One rank's collectives over steps: its plans by number, each step's begin on its clock, and its times."""

    plans: Mapping[int, Plan]
    begin_ns: np.ndarray
    steps: StepComms


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """Seconds blocked by (rank, step), in all and by the phase that waited."""

    total: np.ndarray
    phases: dict[str | None, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Seconds by (rank, step): the three parts of what is exposed, and how long the wire was busy, of which overlapped
    with computing: true in the `exact` steps, whose ends were all seen when they occurred. `last` is each step's rank
    that kept the others waiting most, -1 where none did."""

    waiting: np.ndarray
    transfer: np.ndarray
    queued: np.ndarray
    busy: np.ndarray
    overlapped: np.ndarray
    last: np.ndarray
    exact: np.ndarray


def exposed(ranks: Sequence[RankComm]) -> Exposed:
    """How long each rank was blocked in each step."""
    steps = len(ranks[0].steps)
    begun_in = {c.phase for rank in ranks for plan in rank.plans.values() for c in plan}
    waited_in = {place for rank in ranks for place in np.unique(rank.steps.wait_phase).tolist()} - {SAME_PHASE}
    names = sorted(begun_in | {_phase(place) for place in waited_in}, key=str)
    by_phase = np.zeros((len(ranks), steps, len(names)))
    for index, rank in enumerate(ranks):
        comm, waits = rank.steps, rank.steps.waits
        offsets, table = {}, []
        for number, plan in rank.plans.items():
            offsets[number] = len(table)
            table += [names.index(collective.phase) for collective in plan]
        first = _looked_up(offsets, comm.plan)
        phase = np.array(table, dtype=np.int64)[first[comm.wait_step] + waits[:, 0]]
        for place in waited_in:
            phase[comm.wait_phase == place] = names.index(_phase(place))
        blocked = (waits[:, 2] - waits[:, 1]).astype(np.float64)
        flat = np.bincount(comm.wait_step * len(names) + phase, blocked, minlength=steps * len(names))
        by_phase[index] = flat.reshape(steps, len(names)) * SECONDS
    return Exposed(
        total=by_phase.sum(axis=2), phases={name: by_phase[:, :, column] for column, name in enumerate(names)}
    )


def _phase(place: int) -> str | None:
    return PHASES[place] if place >= 0 else None


def unlike_steps(ranks: Sequence[RankComm]) -> int:
    """In how many steps the ranks did not run the same collectives."""
    return int((np.ptp(_signatures(ranks)[0], axis=0) != 0).sum())


def split(ranks: Sequence[RankComm], clock_offsets_ns: np.ndarray) -> Split:
    """The parts of what is exposed. `clock_offsets_ns`, (ranks, steps), added to the ranks' clocks makes them one; the
    ranks run the same collectives in each step."""
    signatures, plans = _signatures(ranks)
    shape = signatures.shape
    found = {name: np.zeros(shape) for name in ("waiting", "transfer", "queued", "busy", "overlapped")}
    last = np.full(shape[1], -1)
    exact = np.zeros(shape[1], dtype=bool)
    for signature in np.unique(signatures[0]):
        columns = np.flatnonzero(signatures[0] == signature)
        part = _alike(ranks, columns, plans[signature], clock_offsets_ns[:, columns])
        last[columns], exact[columns] = part.last, part.exact
        for name, values in found.items():
            values[:, columns] = getattr(part, name)
    return Split(**found, last=last, exact=exact)


def _signatures(ranks: Sequence[RankComm]) -> tuple[np.ndarray, list[Plan]]:
    """A number for what a rank ran in a step, (rank, step), alike for what is alike; and the plans by that number."""
    numbers: dict[tuple[tuple[str, int, str], ...], int] = {}
    plans: list[Plan] = []
    rows = []
    for rank in ranks:
        of_plan = {}
        for number, plan in rank.plans.items():
            key = tuple((c.kind, c.payload_bytes, c.group) for c in plan)
            if key not in numbers:
                numbers[key] = len(plans)
                plans.append(plan)
            of_plan[number] = numbers[key]
        rows.append(_looked_up(of_plan, rank.steps.plan))
    return np.array(rows, dtype=np.int64).reshape(len(ranks), -1), plans


def _looked_up(table: Mapping[int, int], keys: np.ndarray) -> np.ndarray:
    """The table's value of each key."""
    known, inverse = np.unique(keys, return_inverse=True)
    return np.array([table[key] for key in known.tolist()], dtype=np.int64)[inverse]


def _alike(ranks: Sequence[RankComm], columns: np.ndarray, plan: Plan, offsets: np.ndarray) -> Split:
    """The split of steps `columns`, in which all ranks run `plan`."""
    chosen = [rank.steps.take(columns) for rank in ranks]
    begins = np.array([rank.begin_ns[columns] for rank in ranks], dtype=np.int64) + offsets
    # Counted from the first rank's begin of the step, so that nanoseconds keep their place in a double.
    shift = (begins - begins.min(axis=0)).astype(np.float64)
    handed_in, ends = (
        np.stack([times.reshape(len(columns), len(plan)) for times in of_ranks]) + shift[:, :, None]
        for of_ranks in ([comm.handed_in for comm in chosen], [comm.ended for comm in chosen])
    )
    seen = ~np.isnan(ends)
    ends = np.where(seen, ends, handed_in)
    starts = began_ns(handed_in, ends, plan)
    ready = np.minimum(starts.max(axis=0), ends)
    totals = {name: np.zeros(shift.shape) for name in ("waiting", "transfer", "blocked", "busy", "overlapped")}
    for index, comm in enumerate(chosen):
        step, collective = comm.wait_step, comm.waits[:, 0]
        a, b = (comm.waits[:, column] + shift[index, step] for column in (1, 2))
        start, middle, end = (times[index, step, collective] for times in (starts, ready, ends))
        for name, low, high in (("waiting", start, middle), ("transfer", middle, end)):
            within = np.maximum(0.0, np.minimum(b, high) - np.maximum(a, low))
            totals[name][index] = np.bincount(step, within, minlength=len(columns))
        totals["blocked"][index] = np.bincount(step, b - a, minlength=len(columns))
        busy = _covered(ready[index], ends[index])
        both = _covered(*_with_waits(ready[index], ends[index], step, a, b))
        totals["busy"][index] = busy
        totals["overlapped"][index] = both - totals["blocked"][index]
    seconds = {name: values * SECONDS for name, values in totals.items()}
    blocked = seconds.pop("blocked")
    queued = blocked - seconds["waiting"] - seconds["transfer"]
    assert queued.min(initial=0.0) > -SECONDS, "a wait is counted twice"
    return Split(
        **seconds,
        queued=np.maximum(queued, 0.0),
        last=_last(starts),
        exact=seen.all(axis=(0, 2)) & np.all([comm.exact for comm in chosen], axis=0),
    )


def began_ns(handed_in: np.ndarray, ends: np.ndarray, plan: Plan) -> np.ndarray:
    """When the backend began each collective: as handed in, once one of its threads for that group was free."""
    starts = np.empty_like(handed_in)
    free: dict[str, np.ndarray] = {}
    for index, collective in enumerate(plan):
        threads = free.setdefault(collective.group, np.full((*handed_in.shape[:2], GLOO_THREADS), -np.inf))
        starts[:, :, index] = np.maximum(handed_in[:, :, index], threads.min(axis=2))
        np.put_along_axis(threads, threads.argmin(axis=2)[:, :, None], ends[:, :, index, None], axis=2)
    return starts


def _covered(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Length of the union of the intervals in each row."""
    order = np.argsort(begin, axis=1)
    begin, end = np.take_along_axis(begin, order, axis=1), np.take_along_axis(end, order, axis=1)
    if not begin.shape[1]:
        return np.zeros(len(begin))
    reached = np.maximum.accumulate(end, axis=1)
    before = np.concatenate([np.full((len(begin), 1), -np.inf), reached[:, :-1]], axis=1)
    return np.maximum(0.0, end - np.maximum(begin, before)).sum(axis=1)


def _with_waits(
    begin: np.ndarray, end: np.ndarray, step: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The intervals of each row together with the waits of that step."""
    counts = np.bincount(step, minlength=len(begin))
    width = int(counts.max(initial=0))
    place = np.arange(len(step)) - np.repeat(np.cumsum(counts) - counts, counts)
    more = np.zeros((2, len(begin), width))
    more[0, step, place], more[1, step, place] = a, b
    return np.concatenate([begin, more[0]], axis=1), np.concatenate([end, more[1]], axis=1)


def _last(starts: np.ndarray) -> np.ndarray:
    """Of each step, the rank that came last to its collectives by the most time over the one before it; -1 for none."""
    ranks, steps, count = starts.shape
    if ranks < 2 or not count:
        return np.full(steps, -1)
    order = np.sort(starts, axis=0)
    gaps = order[-1] - order[-2]
    late = np.zeros((ranks, steps))
    np.add.at(late, (starts.argmax(axis=0), np.arange(steps)[:, None]), gaps)
    return np.where(late.max(axis=0) > 0, late.argmax(axis=0), -1)
