"""Signals end a run in order: the step is done, on all ranks the same, and what there is, is written."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from scalelab.profiles.records import EndRecord
from scalelab.profiles.runfolder import RunFolder

from tests.support.supervised import MODEL, Timed, pid_of

LONG = {"steps": 100_000, "seconds": 0.02}


def send_to_supervisor(number: signal.Signals, times: int = 1):
    def act(folder: RunFolder) -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    return act


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.fault(13)),
        pytest.param(signal.SIGTERM, 143, "interrupted", marks=pytest.mark.fault(15)),
        pytest.param(signal.SIGHUP, 143, "interrupted", marks=pytest.mark.fault(17)),
        pytest.param(signal.SIGUSR1, 75, "preempted", marks=pytest.mark.fault(16)),
    ],
)
def test_one_signal_ends_the_run_after_a_step(
    tmp_path: Path, timed: Timed, number: signal.Signals, code: int, state: str
) -> None:
    """All ranks stop after the same step, and save a checkpoint there where the run saves any."""
    found = timed(tmp_path, act=send_to_supervisor(number), gpus=3, save_every=50_000, **LONG)
    assert (found.status["exit_code"], found.status["state"]) == (code, state)
    steps = {found.steps(rank) for rank in range(3)}
    assert len(steps) == 1
    records, unreadable = found.folder.records(0)
    assert (type(records[-1]), unreadable) == (EndRecord, 0)
    (checkpoint,) = (found.folder.path / "checkpoints").glob("step-*")
    assert checkpoint.name == f"step-{steps.pop():06d}"
    assert found.left == []


@pytest.mark.fault(16)
def test_a_warning_to_one_rank_saves_on_all(tmp_path: Path, timed: Timed) -> None:
    """SIGUSR1 to a single rank, as Slurm may send it: exit 75, with a checkpoint of all ranks though none was asked."""

    def warn(folder: RunFolder) -> None:
        os.kill(pid_of(folder, 1), signal.SIGUSR1)

    found = timed(tmp_path, act=warn, **LONG)
    assert (found.status["exit_code"], found.status["state"]) == (75, "preempted")
    assert "checkpoint is in the run folder" in found.status["hint"]
    assert found.steps(0) == found.steps(1)
    assert (found.folder.path / "checkpoints" / f"step-{found.steps(0):06d}" / "MANIFEST.json").is_file()


SLOW_SAVE = """
    import time
    from scalelab.launch import checkpoint
    save = checkpoint.save
    def slow(*args, **options):
        time.sleep(2)
        return save(*args, **options)
    checkpoint.save = slow
"""


@pytest.mark.fault(16)
def test_sigterm_after_a_warning_leaves_the_checkpoint_its_time(tmp_path: Path, timed: Timed) -> None:
    """SIGUSR1, then SIGTERM while the checkpoint is written, as Slurm sends them: it is whole, and the exit code 75."""

    def act(folder: RunFolder) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGTERM)

    found = timed(tmp_path, model=SLOW_SAVE + MODEL, act=act, grace=30, **LONG)
    assert (found.status["exit_code"], found.status["state"]) == (75, "preempted")
    assert (found.folder.path / "checkpoints" / f"step-{found.steps(0):06d}" / "MANIFEST.json").is_file()


def block_checkpoints(rank: int) -> None:
    """A file lies where the folder of checkpoints is to be."""
    from scalelab.launch import worker

    build = worker._job

    def blocked(folder: RunFolder, *args, **options):
        (folder.path / "checkpoints").touch()
        return build(folder, *args, **options)

    worker._job = blocked


@pytest.mark.fault(16)
def test_a_warning_whose_checkpoint_fails_is_not_called_resumable(tmp_path: Path, timed: Timed) -> None:
    """Exit 11 with the reason, and not 75, after which a scheduler would requeue the job."""
    found = timed(tmp_path, plant=block_checkpoints, act=send_to_supervisor(signal.SIGUSR1), **LONG)
    assert (found.status["exit_code"], found.status["state"]) == (11, "preempted")
    assert "checkpoints" in found.status["cause"]


@pytest.mark.fault(14)
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, timed: Timed) -> None:
    """Ctrl-C twice in a step that never ends: nothing is waited for."""
    found = timed(tmp_path, act=send_to_supervisor(signal.SIGINT, 2), at_step=0, seconds=600, grace=300)
    assert (found.status["exit_code"], found.status["state"]) == (130, "interrupted")
    assert found.left == []


@pytest.mark.fault(13)
def test_a_step_that_outlasts_the_grace_is_cut(tmp_path: Path, timed: Timed) -> None:
    """A step that does not end within `--grace` is not waited for."""
    found = timed(tmp_path, act=send_to_supervisor(signal.SIGINT), at_step=0, seconds=600, grace=0.5)
    assert (found.status["exit_code"], found.status["state"]) == (130, "interrupted")
    assert found.left == []
