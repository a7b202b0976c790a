"""What a rank's collectives did in each step: kept while the step runs, made into a record when it is over.

The recording group (`group.py`) calls in here. Nothing waits and nothing is computed between collectives: each one
costs two stamps, an entry in a list and a callback at its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Variable

from ..records import CollectiveShape, CommPlanRecord, CommRecord
from .timeline import HostTimeline, Timeline

# A collective that nobody waits for may end after its step: the step's record then waits for it this many steps.
PATIENCE_STEPS = 3


class Collective:
    """One collective of this rank. `shape` is its number with the recorder; stamps are nanoseconds of the host's clock,
    `waits` marks of the timeline."""

    __slots__ = ("ended", "future_taken", "graph_task", "handed_in", "shape", "waits")

    def __init__(self, shape: int, handed_in: int) -> None:
        self.shape = shape
        self.handed_in = handed_in
        self.ended: int | None = None
        self.waits: list[tuple[Any, Any]] = []
        self.future_taken = False
        self.graph_task = -1


class StepComm:
    """The collectives of one step, and the waits for several at once at the end of a backward pass."""

    __slots__ = ("barriers", "collectives")

    def __init__(self) -> None:
        self.collectives: list[Collective] = []
        self.barriers: list[tuple[int, Any, Any]] = []

    def complete(self) -> bool:
        """Whether every collective has ended, as far as that can be seen."""
        return all(each.ended is not None or each.waits for each in self.collectives)


class CommRecorder:
    """Keeps what collectives do while a step is open; outside of steps they pass unseen.

    `free` makes the wire free: collectives end at once, with finite contents and without a peer.
    """

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.clock = clock
        self.timeline: Timeline = HostTimeline(clock)
        self.sees_ends = True
        self.free = False
        self._step: StepComm | None = None
        self._phase: str | None = None
        self._graph_task = -1
        self._shapes: dict[tuple[str, int, str | None, str], int] = {}
        self._plans: dict[tuple[int, ...], int] = {}

    @property
    def recording(self) -> bool:
        return self._step is not None

    def open(self) -> None:
        """A step begins."""
        self._step = StepComm()
        self._graph_task = -1

    def enter(self, phase: str | None) -> None:
        """A phase of the step begins, or one ends (None)."""
        self._phase = phase

    def close(self) -> StepComm:
        """The step is over; what it had."""
        step, self._step = self._step, None
        assert step is not None
        return step

    def begin(self, kind: str, payload_bytes: int, group: str) -> Collective:
        """A collective is about to be handed to the backend."""
        step = self._step
        assert step is not None
        key = (kind, payload_bytes, self._phase, group)
        shape = self._shapes.setdefault(key, len(self._shapes))
        collective = Collective(shape, self.clock())
        step.collectives.append(collective)
        # In backward a C++ wrapper may wait for all of its collectives at the end, out of sight: from the first
        # callback of the engine on. Ours, asked for now, comes before the one that it will ask for.
        task = torch._C._current_graph_task_id()
        collective.graph_task = task
        if task not in (-1, self._graph_task):
            self._graph_task = task
            Variable._execution_engine.queue_callback(lambda: self._backward_over(step, task))
        return collective

    def _backward_over(self, step: StepComm, task: int) -> None:
        """The backward pass has computed everything. What comes until the next callback is waiting."""
        begin = self.timeline.mark()
        Variable._execution_engine.queue_callback(lambda: step.barriers.append((task, begin, self.timeline.mark())))

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
        for task, a, b in step.barriers:
            waits.extend(self._waits_at_end(step, ends, task, since(a), since(b)))
        waits.sort(key=lambda wait: wait[1])
        return new, CommRecord(
            plan=number,
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

    def _waits_at_end(
        self, step: StepComm, ends: list[int | None], task: int, begin: int, end: int
    ) -> list[tuple[int, int, int]]:
        """How [begin, end], in which the collectives of a backward pass were waited for in turn, falls to them."""
        collectives = enumerate(step.collectives)
        waited = [index for index, each in collectives if each.future_taken and each.graph_task == task]
        if not self.sees_ends:
            # On CUDA the stream stands still there, and nothing tells for which of them.
            return [(waited[-1], begin, end)] if waited and end > begin else []
        found = []
        for index in waited:
            ended = ends[index]
            stop = end if ended is None else min(ended, end)
            if stop > begin:
                found.append((index, begin, stop))
                begin = stop
        return found
