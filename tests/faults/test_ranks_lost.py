"""A rank that is gone, in whichever phase, is the one that is blamed, at once, and nothing of the run stays behind."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest
from scalelab.profiles.runfolder import RunFolder

from tests.support.supervised import Timed, mark_fault, pid_of


def die_when(rank: int, name: str, planted: int, *, code: int | None = None) -> None:
    """Have rank `planted` end when it comes to phase `name` of step 3 (or to it before the steps)."""
    if rank != planted:
        return
    from scalelab.launch.supervision.pulse import Pulse

    at = Pulse.at

    def dying(self: Pulse, step: int | None, phase: str | None) -> None:
        at(self, step, phase)
        if phase == name and step in (None, 3):
            mark_fault()
            if code is not None:
                os._exit(code)
            os.kill(os.getpid(), signal.SIGKILL)

    Pulse.at = dying


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("joining", marks=pytest.mark.fault(1)),
        pytest.param("building", marks=pytest.mark.fault(1)),
        pytest.param("data", marks=pytest.mark.fault(2)),
        pytest.param("forward", marks=pytest.mark.fault(3)),
        pytest.param("backward", marks=pytest.mark.fault(4)),
        pytest.param("optimizer", marks=pytest.mark.fault(5)),
    ],
)
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.fault(8)), 1])
def test_a_killed_rank_is_named_with_its_phase(tmp_path: Path, timed: Timed, phase: str, rank: int) -> None:
    """kill -9 of a rank: exit 5, that rank, phase and step; the peers' errors are consequences."""
    found = timed(tmp_path, plant=functools.partial(die_when, name=phase, planted=rank))
    early = phase in ("joining", "building")
    assert found.status["exit_code"] == 5
    assert found.status["culprit"] == {
        "rank": rank, "host": os.uname().nodename, "phase": phase, "step": None if early else 3,
    }  # fmt: skip
    assert "SIGKILL" in found.status["cause"]
    if not early:
        assert [other["rank"] for other in found.status["consequences"]] == [1 - rank]
        # The peer wrote what it had when it met the error, the step itself if it needed nothing more of the other;
        # whoever is killed may lose the last half second.
        assert found.steps(1 - rank) in ((3, 4) if phase == "optimizer" else (3,))
        assert found.steps(rank) <= 3
    assert found.left == []


@pytest.mark.fault(11)
def test_a_rank_that_leaves_early_is_blamed(tmp_path: Path, timed: Timed) -> None:
    """A rank that exits with 0 in the middle is the culprit, not the peer that waits for it."""
    found = timed(tmp_path, plant=functools.partial(die_when, name="forward", planted=1, code=0))
    assert (found.status["exit_code"], found.status["culprit"]["rank"]) == (5, 1)
    assert "left the run early" in found.status["cause"]
    assert found.left == []


@pytest.mark.fault(3)
def test_a_rank_killed_from_outside_is_named(tmp_path: Path, timed: Timed) -> None:
    """The same by a signal from another process, at any moment of a step."""

    def kill(folder: RunFolder) -> None:
        os.kill(pid_of(folder, 1), signal.SIGKILL)

    found = timed(tmp_path, act=kill, gpus=3)
    assert (found.status["exit_code"], found.status["culprit"]["rank"]) == (5, 1)
    assert sorted(other["rank"] for other in found.status["consequences"]) == [0, 2]
    assert found.left == []
