"""Ranks that make no progress are found, the one that the others wait for is named, and every rank's stack is kept."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import time
from pathlib import Path

import pytest
from scalelab.profiles.records import StepRecord
from scalelab.profiles.runfolder import RunFolder

from tests.support.supervised import MODEL, Timed, mark_fault, pid_of

# In place of the 30 s that a hang takes at least with the default.
QUICK = {"hang_seconds": 1.5}


def sleep_in_forward(rank: int, planted: int, *, with_lock: bool = False) -> None:
    """Have rank `planted` sleep for ever in its fourth forward, holding the interpreter's lock if asked."""
    if rank != planted:
        return
    from scalelab.launch.supervision.pulse import Pulse

    at = Pulse.at

    def sleeping(self: Pulse, step: int | None, phase: str | None) -> None:
        at(self, step, phase)
        if (step, phase) == (3, "forward"):
            mark_fault()
            if with_lock:
                ctypes.PyDLL(None).sleep(3600)
            time.sleep(3600)

    Pulse.at = sleeping


@pytest.mark.fault(19)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_named(tmp_path: Path, timed: Timed, rank: int) -> None:
    """Asleep in Python: exit 6, the rank that did not come to the collective, and both ranks' stacks."""
    found = timed(tmp_path, plant=functools.partial(sleep_in_forward, planted=rank), **QUICK)
    assert found.status["exit_code"] == 6
    assert (found.status["culprit"]["rank"], found.status["culprit"]["phase"]) == (rank, "forward")
    assert found.status["culprit"]["step"] == 3
    stacks = [(found.folder.path / "errors" / f"r{index:03d}.stack").read_text() for index in (0, 1)]
    assert "sleeping" in stacks[rank]
    assert "backward" in stacks[1 - rank]
    assert found.left == []


@pytest.mark.fault(20)
def test_a_rank_that_holds_the_interpreter_is_named(tmp_path: Path, timed: Timed) -> None:
    """Native code that never gives the interpreter back: no thread of the rank runs, its stack is still had."""
    found = timed(tmp_path, plant=functools.partial(sleep_in_forward, planted=1, with_lock=True), **QUICK)
    assert (found.status["exit_code"], found.status["culprit"]["rank"]) == (6, 1)
    assert "interpreter lock" in found.status["cause"]
    assert "sleeping" in (found.folder.path / "errors" / "r001.stack").read_text()
    assert found.left == []


@pytest.mark.fault(21)
def test_a_stopped_rank_is_named(tmp_path: Path, timed: Timed) -> None:
    """SIGSTOP: exit 6, the stopped rank, and its stack, for which it runs on a moment."""

    def stop(folder: RunFolder) -> None:
        os.kill(pid_of(folder, 1), signal.SIGSTOP)

    found = timed(tmp_path, act=stop, **QUICK)
    assert (found.status["exit_code"], found.status["culprit"]["rank"]) == (6, 1)
    assert "SIGSTOP" in found.status["cause"]
    assert (found.folder.path / "errors" / "r001.stack").stat().st_size
    # The step that was stopped in is not ended, late, for the sake of the stack.
    records = [record for rank in (0, 1) for record in found.folder.records(rank)[0] if isinstance(record, StepRecord)]
    assert max((record.seconds for record in records), default=0.0) < 1.4
    assert found.left == []


SKIPS = MODEL.replace(
    "return self.layer",
    """
            if self.calls in (3, 4) and not (self.calls == 4 and torch.distributed.get_rank() == 1):
                torch.distributed.all_reduce(torch.ones(5 + self.calls))
            return self.layer""",
)


@pytest.mark.fault(22)
def test_a_rank_that_skips_a_collective_is_named(tmp_path: Path, timed: Timed) -> None:
    """One rank leaves a collective out: the first difference is named with its operation, size and number."""
    found = timed(tmp_path, model=SKIPS, **QUICK)
    assert found.status["exit_code"] == 6
    assert "the ranks are in different collectives" in found.status["cause"]
    assert re.search(r"in collective \d+, all_reduce of \d+", found.status["consequences"][0]["cause"])
    assert found.left == []
