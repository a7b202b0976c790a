"""What a rank's collectives did in each step: kept while the step runs, made into a record when it is over.

The recording group (`group.py`) calls in here, on the thread that trains: a few stamps for each collective. On the
backend's own threads a callback in Python was measured to cost 160 us a collective on busy cores, so ends are stamped
there in few steps only. In the others an end is seen by who waits for it, or where the thread next comes by.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import Variable

from ..records import CollectiveShape, CommPlanRecord, CommRecord
from .timeline import HostTimeline, Timeline, timeline_for

# A collective that nobody waits for may end after its step: the step's record then waits for it this many steps.
PATIENCE_STEPS = 3


class Collective:
    """One collective of this rank. `shape` is its number with the recorder; stamps are nanoseconds of the host's clock,
    `waits` marks of the timeline. `work` is the backend's, until its end was seen."""

    __slots__ = ("ended", "graph_task", "handed_in", "shape", "waits", "work")

    def __init__(self, shape: int, handed_in: int) -> None:
        self.shape = shape
        self.handed_in = handed_in
        self.work: Any = None
        self.ended: int | None = None
        self.waits: list[tuple[Any, Any]] = []
        self.graph_task = -1


class StepComm:
    """The collectives of one step. In an `exact` one their ends are stamped when they occur."""

    __slots__ = ("collectives", "exact")

    def __init__(self, exact: bool) -> None:
        self.collectives: list[Collective] = []
        self.exact = exact

    def complete(self, now: int) -> bool:
        """Whether every collective has ended, as far as that can be seen; those that have are noted as of `now`."""
        _see_ends(self.collectives, now)
        return all(each.work is None for each in self.collectives)


def _see_ends(collectives: list[Collective], now: int) -> list[Collective]:
    """Those of `collectives` that go on; an end that was not seen yet is seen `now`."""
    going_on = []
    for each in collectives:
        if each.work is None:
            continue
        if each.work.is_completed():
            each.work = None
            each.ended = now if each.ended is None else each.ended
        else:
            going_on.append(each)
    return going_on


class CommRecorder:
    """Keeps what collectives do while a step is open; outside of steps they pass unseen."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.clock = clock
        self.timeline: Timeline = HostTimeline(clock)
        self.sees_ends = True
        self.free = False
        self._step: StepComm | None = None
        self._going_on: list[Collective] = []
        self._phase: str | None = None
        self._graph_task = -1
        self._shapes: dict[tuple[str, int, str | None, str], int] = {}
        self._plans: dict[tuple[int, ...], int] = {}

    def on(self, device: torch.device) -> None:
        """Waits are marked on the timeline of `device`; on CUDA nothing tells when a collective has ended."""
        self.timeline, self.sees_ends = timeline_for(device), device.type == "cpu"

    @contextlib.contextmanager
    def free_wire(self) -> Iterator[None]:
        """Within, collectives end at once, with finite contents and without a peer."""
        self.free = True
        try:
            yield
        finally:
            self.free = False

    @property
    def recording(self) -> bool:
        return self._step is not None

    def open(self, *, exact: bool = False) -> None:
        """A step begins; in an `exact` one every end is stamped when it occurs."""
        self._step = StepComm(exact and self.sees_ends)
        self._graph_task = -1

    def enter(self, phase: str | None) -> None:
        """A phase of the step begins, or one ends (None)."""
        self._phase = phase
        if self._going_on and self.sees_ends:
            self._going_on = _see_ends(self._going_on, self.clock())

    def close(self) -> StepComm:
        """The step is over; what it had."""
        step, self._step = self._step, None
        assert step is not None
        self._going_on = []
        return step

    def begin(self, kind: str, payload_bytes: int, group: str) -> Collective:
        """A collective is about to be handed to the backend."""
        step = self._step
        assert step is not None
        key = (kind, payload_bytes, self._phase, group)
        collective = Collective(self._shapes.setdefault(key, len(self._shapes)), now := self.clock())
        step.collectives.append(collective)
        if self._going_on and self.sees_ends:
            self._going_on = _see_ends(self._going_on, now)
        return collective

    def handed_in(self, collective: Collective, work: Any) -> None:
        """The backend has taken the collective, and works on it under `work`."""
        collective.work = work
        self._going_on.append(collective)
        step = self._step
        if step is not None and step.exact:
            self._stamp_end(collective, work)

    def waited(self, collective: Collective, begin: Any) -> None:
        """The timeline has waited for `collective` since mark `begin`."""
        collective.waits.append((begin, self.timeline.mark()))
        collective.work = None

    def future_taken(self, collective: Collective) -> None:
        """Whoever takes a collective's future in backward, as DDP's reducer in C++, waits for it out of sight when the
        backward pass is over: in a callback of the engine. Ours, asked for before theirs, waits there in its place."""
        task = torch._C._current_graph_task_id()
        collective.graph_task = task
        step = self._step
        if task not in (-1, self._graph_task) and step is not None:
            self._graph_task = task
            Variable._execution_engine.queue_callback(lambda: self._backward_over(step, task))

    def _backward_over(self, step: StepComm, task: int) -> None:
        for each in step.collectives:
            work = each.work
            if work is not None and each.graph_task == task:
                begin = self.timeline.mark()
                work.wait()
                self.waited(each, begin)

    def _stamp_end(self, collective: Collective, work: Any) -> None:
        def ended(future: Any) -> None:
            collective.ended = self.clock()

        try:
            future = work.get_future()
        except RuntimeError:  # some have none: whoever waits sees their end
            return
        future.add_done_callback(ended)

    def record(self, step: StepComm, begin: Any, begin_ns: int) -> tuple[CommPlanRecord | None, CommRecord]:
        """`step` as a record, its times counted from mark `begin` or, on the host's clock, from `begin_ns`.

        With it comes the list of collectives that it refers to, the first time that this list occurs.
        """
        timeline = self.timeline

        def since(mark: Any) -> int:
            return round(timeline.seconds(begin, mark) * 1e9)

        plan = tuple(each.shape for each in step.collectives)
        number = self._plans.get(plan)
        new = None
        if number is None:
            number = self._plans[plan] = len(self._plans)
            new = self.plan(number)
        ends: list[int | None] = []
        waits: list[tuple[int, int, int]] = []
        for index, each in enumerate(step.collectives):
            intervals = [(since(a), since(b)) for a, b in each.waits]
            end = None if each.ended is None else each.ended - begin_ns
            if intervals and self.sees_ends:
                # Who waited saw the end at the latest then; the callback may have come later.
                end = intervals[0][1] if end is None else min(end, intervals[0][1])
            ends.append(end)
            waits.extend((index, a, b) for a, b in intervals if b > a)
        waits.sort(key=lambda wait: wait[1])
        return new, CommRecord(
            plan=number,
            exact=step.exact,
            handed_in_ns=[each.handed_in - begin_ns for each in step.collectives],
            ended_ns=ends,
            waits=[number for wait in waits for number in wait],
        )

    def plan(self, number: int) -> CommPlanRecord:
        """The list of collectives under `number`."""
        keys, plan = list(self._shapes), list(self._plans)[number]
        collectives = [
            CollectiveShape(kind=kind, payload_bytes=payload, phase=phase, group=group)
            for kind, payload, phase, group in (keys[shape] for shape in plan)
        ]
        return CommPlanRecord(plan=number, collectives=collectives)
