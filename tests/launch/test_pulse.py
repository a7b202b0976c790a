"""Where a rank is, as it says it and as it is seen from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from scalelab.launch.supervision import pulse as pulses
from scalelab.launch.supervision.pulse import Pulse, prepare
from scalelab.launch.supervision.sighting import see
from scalelab.profiles.records import PHASES


@pytest.fixture(params=["ext4", "btrfs"])
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A run folder's place for pulses, on a file system that shares memory with a file and on one where that is
    not done."""
    monkeypatch.setattr(pulses, "file_system", lambda path: request.param)
    (tmp_path / "live").mkdir()
    return tmp_path


def test_the_last_word_is_seen(folder: Path) -> None:
    """Step, phase and since when, also of a phase that nobody knew of."""
    prepare(folder, 3)
    assert (see(folder, 3).phase, see(folder, 3).step, see(folder, 3).pid) == ("starting", None, None)
    now = 100.0
    pulse = Pulse(folder, 3, lambda: now)
    for now, step, phase in ((101.0, None, "joining"), (102.0, 0, "data"), (103.5, 70_000, "café"), (104.0, 7, None)):
        pulse.at(step, phase)
        found = see(folder, 3)
        assert (found.since, found.step, found.phase) == (now, step, phase or "café")


def test_patience_ends_with_the_next_word(folder: Path) -> None:
    prepare(folder, 0)
    pulse = Pulse(folder, 0)
    pulse.patient()
    assert see(folder, 0).patient
    pulse.at(1, "forward")
    assert not see(folder, 0).patient
    pulse.end("failed", 8)
    assert (see(folder, 0).state, see(folder, 0).code, see(folder, 0).phase) == ("failed", 8, "forward")


def test_events_are_no_steps(folder: Path) -> None:
    """A step's length counts towards the percentile unless an evaluation or a checkpoint lay in it."""
    prepare(folder, 0)
    now = 0.0
    pulse = Pulse(folder, 0, lambda: now)
    for step in range(6):
        pulse.at(step, "forward")
        now += 1.0
        if step == 3:
            pulse.at(step, "evaluation")
            now += 50.0
    assert pulse.median_seconds() == 1.0
    assert max(pulse._recent) == 1.0


def test_a_long_temporary_folder_leaves_room_for_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who the rank is, and every phase's name, fit beside a path of 400 characters: what did not fit would be lost."""
    place = "/" + "t" * 399
    monkeypatch.setattr(pulses, "_own_temporary_folder", lambda: place)
    prepare(folder, 0)
    pulse = Pulse(folder, 0)
    for phase in ("joining", "building", *PHASES, *pulses.EVENTS, "profiler", "flush", "step"):
        pulse.at(1, phase)
    pulse.end("finished")
    found = see(folder, 0)
    assert (found.temporary, found.state, found.phase) == (place, "finished", "step")
