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


def test_a_real_collection_is_seen_while_watched() -> None:
    with garbage_watch() as watch:
        gc.collect()
        assert watch.take() > 0
        assert watch.take() == 0
    before = watch.take()
    gc.collect()
    assert watch.take() == before == 0
