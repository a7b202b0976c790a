"""The collector's pauses, and in which step they were."""

from __future__ import annotations

import gc

from scalelab.profiles.capture.garbage import GarbageWatch, garbage_watch
from scalelab.profiles.capture.pauses import Pauses
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.records import Record, StepRecord

from tests.profiles.test_probe import Clock, Step


def test_pauses_belong_to_the_step_they_were_in() -> None:
    """Each step has its own, whatever phase they came in; without a watch it is not known."""
    clock = Clock()
    watch, records = GarbageWatch(clock), list[Record]()
    probe = Probe(lambda *written: records.extend(written), HostTimeline(clock), pauses=Pauses(watch))
    for index, seconds in enumerate((0.25, 0.0, 0.5)):
        with probe.step(Step(index)), probe.phase("forward"):
            watch.seen("start", {})
            clock.advance(seconds)
            watch.seen("stop", {})
            clock.advance(1.0)
    probe.close()
    assert [record.gc_seconds for record in records if isinstance(record, StepRecord)] == [0.25, 0.0, 0.5]


def test_pauses_between_steps() -> None:
    """Those before the first step, in an event and where records are written are no step's; what lies directly between
    two steps is in the time of the next, and so are its pauses."""
    clock = Clock()
    watch, records = GarbageWatch(clock), list[Record]()

    def paused(seconds: float) -> None:
        watch.seen("start", {})
        clock.advance(seconds)
        watch.seen("stop", {})

    def write(*written: Record) -> None:
        records.extend(written)
        if len(written) > 1:
            paused(64.0)

    probe = Probe(write, HostTimeline(clock), pauses=Pauses(watch))
    paused(16.0)
    for index in range(4):
        with probe.step(Step(index)):
            clock.advance(0.01)
        if index == 0:
            paused(1.0)
        elif index == 1:
            with probe.event("evaluation", index):
                paused(32.0)
        elif index == 2:
            clock.advance(1.0)
            paused(2.0)
    probe.close()
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert [record.gc_seconds for record in steps] == [0.0, 1.0, 0.0, 2.0]
    assert [round(record.seconds, 6) for record in steps] == [0.01, 1.01, 0.01, 3.01]


def test_a_real_collection_is_seen_while_watched() -> None:
    with garbage_watch() as watch:
        gc.collect()
        assert watch.take() > 0
        assert watch.take() == 0
    before = watch.take()
    gc.collect()
    assert watch.take() == before == 0
