"""What a rank's collectives did in each step: kept while the step runs, made into a record when it is over.

The recording group (`group.py`) calls in here, on the thread that trains: a few stamps for each collective. On the
backend's own threads a callback in Python was measured to cost 160 us a collective on busy cores, so ends are stamped
there in few steps only. In the others an end is seen by who waits for it, or where the thread next comes by.
"""

from __future__ import annotations

import contextlib
import functools
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch.autograd import Variable

from ..records import PHASES, SAME_PHASE, CollectiveShape, CommPlanRecord, CommRecord
from .timeline import HostTimeline, Timeline, timeline_for

# A collective that nobody waits for may end after its step: the step's record then waits for it this many steps.
PATIENCE_STEPS = 3
# What a group does with collectives: record them, pass them on, or pass those of autograd's engine on twice.
Mode = Literal["record", "pass", "pass_twice"]
LOOKED_AT = 2
_PLACES: dict[str | None, int] = {name: place for place, name in enumerate(PHASES)}
_current_graph_task = torch._C._current_graph_task_id


class Collective:
    """One collective of this rank. `shape` is its number with the recorder; stamps are nanoseconds of the host's clock,
    `waits` marks of the timeline with the phase that ran. `work` is the backend's, until its end was seen."""

    shape: int
    handed_in: int
    work: Any = None
    ended: int | None = None
    waits: tuple[tuple[Any, Any, str | None], ...] = ()
    graph_task: int = -1


class StepComm:
    """The collectives of one step. In an `exact` one their ends are stamped when they occur; `going_on` once it is
    over: some had not ended, as far as could be seen."""

    __slots__ = ("collectives", "exact", "going_on")

    def __init__(self, exact: bool) -> None:
        self.collectives: list[Collective] = []
        self.exact = exact
        self.going_on = False

    def complete(self, now: int) -> bool:
        """Whether every collective has ended, as far as that can be seen; those that have are noted as of `now`."""
        if self.going_on:
            self.going_on = bool(_see_ends(self.collectives, now))
        return not self.going_on


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
        self.phase: str | None = None
        """The phase of the step that runs."""
        self.going_on: list[Collective] = []
        """Collectives whose end was not seen yet, the oldest first."""
        self.of_engine: list[Collective] = []
        """Those that DDP's reducer sent in the backward pass that runs."""
        self.engine_seen = False
        """Whether autograd's engine, as DDP's reducer, has sent any."""
        self.step: StepComm | None = None
        """The step that is open."""
        self._shapes: dict[tuple[str, int, str | None, str], int] = {}
        self._graph_task = -1
        self._plans: dict[tuple[int, ...], int] = {}
        self._seams: weakref.WeakKeyDictionary[Any, Callable[[Any, Mode], None]] = weakref.WeakKeyDictionary()

    def seam(self, group: Any, switch: Callable[[Any, Mode], None]) -> None:
        """`group` calls in here; `switch(group, mode)` says what it does."""
        self._seams[group] = switch

    @contextlib.contextmanager
    def off(self, mode: Mode = "pass") -> Iterator[None]:
        """Within, collectives go past, or as `mode` says."""
        seams = list(self._seams.items())
        for group, switch in seams:
            switch(group, mode)
        try:
            yield
        finally:
            for group, switch in seams:
                switch(group, "record")

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

    def open(self, *, exact: bool = False) -> None:
        """A step begins; in an `exact` one every end is stamped when it occurs."""
        self.step = StepComm(exact and self.sees_ends)
        self._graph_task = -1
        self.of_engine = []

    def look(self, now: int) -> None:
        """See which collectives have ended: of those under way the oldest few, as backends work on few at once."""
        going_on = self.going_on
        while going_on and self.sees_ends:
            looked_at = going_on[:LOOKED_AT]
            still = _see_ends(looked_at, now)
            if len(still) == len(looked_at):
                return
            going_on[:LOOKED_AT] = still

    def close(self) -> StepComm:
        """The step is over; what it had."""
        step, self.step = self.step, None
        assert step is not None
        if self.going_on:
            self.look(self.clock())
            step.going_on = bool(self.going_on)
            self.going_on.clear()
        return step

    def begin(self, kind: str, payload_bytes: int, group: str) -> Collective:
        """A collective is about to be handed to the backend."""
        step = self.step
        assert step is not None
        collective = Collective()
        collective.shape = self.shape(kind, payload_bytes, group)
        collective.handed_in = now = self.clock()
        step.collectives.append(collective)
        if self.going_on:
            self.look(now)
        return collective

    def shape(self, kind: str, payload_bytes: int, group: str) -> int:
        """The number of such a collective in the phase that runs."""
        return self._shapes.setdefault((kind, payload_bytes, self.phase, group), len(self._shapes))

    def handed_in(self, collective: Collective, work: Any) -> None:
        """The backend has taken the collective, and works on it under `work`."""
        collective.work = work
        self.going_on.append(collective)
        step = self.step
        if step is not None and step.exact:
            self.stamp_end(collective, work)

    def waited(self, collective: Collective, begin: Any) -> None:
        """The timeline has waited for `collective` since mark `begin`."""
        collective.waits += ((begin, self.timeline.mark(), self.phase),)
        collective.work = None

    def future_taken(self, collective: Collective) -> None:
        """Whoever takes a collective's future in backward, as DDP's reducer in C++, waits for it out of sight when the
        backward pass is over: in a callback of the engine. Ours, asked for before theirs, waits there in its place."""
        task = collective.graph_task = _current_graph_task()
        step = self.step
        if task != self._graph_task and task != -1 and step is not None:
            self._graph_task = task
            Variable._execution_engine.queue_callback(lambda: self._backward_over(step, task))

    def engine_sends(self) -> None:
        """DDP's reducer sends the first of what will be in `of_engine`; that is waited for when backward is over."""
        self.engine_seen = True
        Variable._execution_engine.queue_callback(self._engine_is_over)

    def _engine_is_over(self) -> None:
        sent, self.of_engine = self.of_engine, []
        mark = self.timeline.mark
        for each in sent:
            work, each.work = each.work, None
            if self.sees_ends and work.is_completed():
                continue  # nobody was kept waiting, and when it ended is not known
            begin = mark()
            work.wait()
            each.waits = ((begin, mark(), self.phase),)

    def _backward_over(self, step: StepComm, task: int) -> None:
        for each in step.collectives:
            work = each.work
            if work is not None and each.graph_task == task:
                begin = self.timeline.mark()
                work.wait()
                self.waited(each, begin)

    def stamp_end(self, collective: Collective, work: Any) -> None:
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
        since = functools.partial(self.timeline.nanoseconds, begin)
        plan = tuple(each.shape for each in step.collectives)
        number = self._plans.get(plan)
        new = None
        if number is None:
            number = self._plans[plan] = len(self._plans)
            new = self.plan(number)
        ends: list[int | None] = []
        begun_in = [phase for _, _, phase, _ in self._shapes]
        waits: list[tuple[int, int, int, int]] = []
        for index, each in enumerate(step.collectives):
            end = None if each.ended is None else each.ended - begin_ns
            for nth, (a, b, phase) in enumerate(each.waits):
                waited_from, until = since(a), since(b)
                if nth == 0 and self.sees_ends and (end is None or until < end):
                    end = until  # who waited saw the end at the latest then; the callback may have come later
                if until > waited_from:
                    place = SAME_PHASE if phase == begun_in[each.shape] else _PLACES.get(phase, -1)
                    waits.append((waited_from, until, index, place))
            ends.append(end)
        waits.sort()
        return new, CommRecord(
            plan=number,
            exact=step.exact,
            handed_in_ns=[each.handed_in - begin_ns for each in step.collectives],
            ended_ns=ends,
            waits=[number for a, b, index, _ in waits for number in (index, a, b)],
            waited_in=[n for row, (*_, place) in enumerate(waits) if place != SAME_PHASE for n in (row, place)],
        )

    def plan(self, number: int) -> CommPlanRecord:
        """The list of collectives under `number`."""
        keys, plan = list(self._shapes), list(self._plans)[number]
        collectives = [
            CollectiveShape(kind=kind, payload_bytes=payload, phase=phase, group=group)
            for kind, payload, phase, group in (keys[shape] for shape in plan)
        ]
        return CommPlanRecord(plan=number, collectives=collectives)
