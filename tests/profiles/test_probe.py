"""The ledger of a rank's time closes: phases, steps and events, under a clock that the test owns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scalelab.launch.strategies._contract import Gradients
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.steps import MAX_PENDING
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.capture.window import WindowProbe
from scalelab.profiles.records import PHASES, EventRecord, Record, Role, StepRecord, WindowRecord
from scalelab.profiles.used import MemoryRecord


class Clock:
    """Nanoseconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


@dataclass(frozen=True)
class Step:
    index: int
    role: Role = "measured"
    lr: float = 1e-3
    samples: int = 4


class LateTimeline(HostTimeline):
    """A device that reaches marks only when waited for, as a GPU with a full queue."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.reached_until = -1
        self.waits = 0

    def reached(self, mark: int) -> bool:
        return mark <= self.reached_until

    def wait(self, mark: int) -> None:
        self.waits += 1
        self.reached_until = max(self.reached_until, mark)


def probe_with(clock: Clock) -> tuple[Probe, list[Record]]:
    records: list[Record] = []
    return Probe(lambda *written: records.extend(written), HostTimeline(clock)), records


durations = st.lists(st.sampled_from([0.0, 0.001, 0.25, 3.0]), min_size=6, max_size=6)


@given(st.lists(durations, min_size=1, max_size=5))
def test_steps_tile_the_run_and_phases_sum_with_the_rest(plan: list[list[float]]) -> None:
    """Each step begins where the one before ended, and what is in no phase is what was spent outside of them."""
    clock = Clock()
    probe, records = probe_with(clock)
    began = clock.now
    for index, (between, *parts) in enumerate(plan):
        with probe.step(Step(index)):
            for name, seconds in zip(PHASES, parts, strict=True):
                with probe.phase(name):
                    clock.advance(seconds)
            clock.advance(0.5)
        clock.advance(between)
    ended = clock.now - round(plan[-1][0] * 1e9)
    probe.close()
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert sum(step.seconds for step in steps) == pytest.approx((ended - began) * 1e-9)
    earlier = 0.0
    for step, (between, *parts) in zip(steps, plan, strict=True):
        assert step.phases == pytest.approx(dict(zip(PHASES, parts, strict=True)))
        assert step.seconds - sum(step.phases.values()) == pytest.approx(0.5 + earlier)
        assert step.host_data_seconds == pytest.approx(parts[0])
        earlier = between


def test_micro_batches_add_up_in_their_phase() -> None:
    """Two forwards of one step are one phase of their sum."""
    clock = Clock()
    probe, records = probe_with(clock)
    with probe.step(Step(0)):
        for _ in range(2):
            with probe.phase("forward"):
                clock.advance(0.25)
            probe.loss(torch.tensor(2.0))
    probe.close()
    (step,) = records
    assert isinstance(step, StepRecord)
    assert step.phases == {"forward": 0.5}
    assert step.losses == [2.0, 2.0]


def test_events_lie_between_steps_and_belong_to_none() -> None:
    """An evaluation's time is its own: steps before and after are as long as without it."""
    clock = Clock()
    probe, records = probe_with(clock)
    for index in range(2):
        with probe.step(Step(index)):
            clock.advance(1.0)
        with probe.event("evaluation", index) as values:
            clock.advance(7.0)
            values["ap_mean"] = 0.5
    probe.close()
    found = [
        (type(r), round(r.start_seconds, 6), round(r.seconds, 6))
        for r in records
        if isinstance(r, StepRecord | EventRecord)
    ]
    assert found == [(StepRecord, 0, 1), (EventRecord, 1, 7), (StepRecord, 8, 1), (EventRecord, 9, 7)]
    assert isinstance(records[1], EventRecord)
    assert records[1].values == {"ap_mean": 0.5}


def test_nothing_waits_for_a_device_that_lags() -> None:
    """Marks that are not reached are read later; only a full queue or the end of the run waits."""
    clock = Clock()
    timeline = LateTimeline(clock)
    records: list[Record] = []
    probe = Probe(lambda *written: records.extend(written), timeline)
    for index in range(MAX_PENDING):
        with probe.step(Step(index)):
            clock.advance(1.0)
    assert timeline.waits == 0
    assert records == []
    with probe.step(Step(MAX_PENDING)):
        clock.advance(1.0)
    assert timeline.waits == 1
    probe.close()
    assert [record.step for record in records if isinstance(record, StepRecord)] == list(range(MAX_PENDING + 1))


def test_a_loss_that_is_not_finite_is_null_and_seen_by_the_watch() -> None:
    """JSON has no NaN: the record holds null, and the watch can stop the run on it."""
    seen: list[StepRecord] = []
    probe = Probe(lambda *records: None, HostTimeline(), watch=seen.extend)
    for index, value in enumerate((1.0, math.nan, math.inf)):
        with probe.step(Step(index)):
            probe.loss(torch.tensor(value))
    probe.close()
    assert [record.losses for record in seen] == [[1.0], [None], [None]]


class TwoTensors:
    """State of a model of two tensors, one a view into the other."""

    def __init__(self) -> None:
        self.flat = torch.ones(6)
        self.grads = Gradients([self.flat[:2], self.flat[2:]], replicas=2, scale=torch.tensor(0.5))
        self.skipped: torch.Tensor | bool = False

    def gradients(self) -> Gradients:
        return self.grads

    def state(self) -> dict[str, list[torch.Tensor]]:
        return {"parameters": [torch.zeros(3)], "gradients": self.grads.parts, "optimizer": [self.flat, torch.zeros(5)]}


def test_gradient_norm_and_memory_are_taken_when_asked() -> None:
    """Sum of squares of the unscaled gradients that the rank holds; bytes by unique storage, shared ones counted for
    their first kind."""
    records: list[Record] = []
    probe = Probe(lambda *written: records.extend(written), HostTimeline(), grad_norm_steps=99, memory_step=1)
    for index in range(2):
        with probe.step(Step(index)):
            probe.loss(torch.tensor(3.0))
            probe.gradients_ready(TwoTensors())
    probe.close()
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert [(step.grad_square_sum, step.grad_replicas, step.losses) for step in steps] == [(24.0, 2, [3.0])] * 2
    (memory,) = [record for record in records if isinstance(record, MemoryRecord)]
    assert (memory.step, memory.parameters_bytes, memory.gradients_bytes, memory.optimizer_bytes) == (1, 12, 24, 20)


def test_where_names_the_phase_in_which_something_failed() -> None:
    """Whoever listens knows at which step and in which phase an error was met."""
    places: list[tuple[int | None, str | None]] = []
    probe = Probe(lambda *records: None, HostTimeline(Clock()), at=lambda *place: places.append(place))
    with pytest.raises(RuntimeError), probe.step(Step(3)), probe.phase("backward"):
        raise RuntimeError
    assert places[-1] == (3, "backward")


def test_window_probe_times_the_measured_window_alone() -> None:
    """With the probe off there is one record: the measured steps as a whole, warm-up left out."""
    clock = Clock()
    records: list[Record] = []
    probe = WindowProbe(records.append, HostTimeline(clock))

    def roles() -> Iterator[Step]:
        yield Step(0, role="warmup")
        yield from (Step(index) for index in range(1, 4))

    for step in roles():
        with probe.step(step), probe.phase("forward"):
            clock.advance(2.0)
    probe.close()
    assert records == [WindowRecord(steps=3, samples=12, seconds=6.0)]


def test_a_skipped_update_is_recorded_with_its_step() -> None:
    """The flag is a tensor that is read with the losses, or known at once."""
    records: list[Record] = []
    probe = Probe(lambda *written: records.extend(written), HostTimeline(), grad_norm_steps=99)
    model = TwoTensors()
    for index, flag in enumerate((torch.tensor(1.0), torch.tensor(0.0), True, False)):
        with probe.step(Step(index)):
            probe.loss(torch.tensor(1.0))
            probe.gradients_ready(model)
            model.skipped = flag
            probe.updated(model)
    probe.close()
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert [(step.skipped, step.losses, step.grad_square_sum) for step in steps] == [
        (skipped, [1.0], 24.0) for skipped in (True, False, True, False)
    ]
