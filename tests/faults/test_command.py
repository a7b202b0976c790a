"""Faults met by the real command and its real launchers, as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from scalelab.launch.supervision.sighting import see

from tests.support.supervised import MODEL

NEVER = "--steps=100000"


def start(place: Path, *options: str, **process: Any) -> subprocess.Popen[str]:
    """`scalelab run` of the micro model on two ranks."""
    place.mkdir(exist_ok=True)
    (place / "micro.py").write_text(textwrap.dedent(MODEL).format(seconds=0.02))
    return command(place, f"--model={place / 'micro.py'}", *options, **process)


def command(place: Path, *options: str, **process: Any) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "scalelab", "run", "--gpus=2", f"--out={place}", "--warmup=1", *options]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **process}
    return subprocess.Popen(argv, text=True, **streams)


def wait_for_step(place: Path, process: subprocess.Popen[str], step: int = 5) -> list[psutil.Process]:
    """Wait until both ranks are at `step`; every process of the run."""
    while True:
        assert process.poll() is None, process.communicate()
        seen = [see((place / "latest").resolve(), rank) for rank in (0, 1)]
        if all(item.step is not None and item.step >= step for item in seen):
            return psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)


def status(place: Path) -> dict[str, Any]:
    return json.loads((place / "latest" / "status.json").read_text())


def alive(family: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.fault(3, 4)
def test_a_rank_killed_under_torchrun_is_named(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """kill -9 of a rank that torchrun started: exit 5, one line of cause, peers folded, all processes gone."""
    process = start(tmp_path, NEVER, "--launcher=torchrun")
    family = wait_for_step(tmp_path, process)
    pid = see((tmp_path / "latest").resolve(), 1).pid
    assert pid is not None
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    record_property("ended_seconds", time.monotonic() - began)
    assert process.returncode == 5
    assert (status(tmp_path)["culprit"]["rank"], status(tmp_path)["cause"]) == (1, "ended by SIGKILL")
    assert "error: rank 1, " in errors
    assert "as a consequence, rank 0, " in errors
    assert alive(family) == []


@pytest.mark.fault(9)
@pytest.mark.parametrize("launcher", ["fork", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_killed_supervisor_leaves_nothing_and_is_told_of(
    tmp_path: Path, launcher: str, record_property: Callable[[str, object], None]
) -> None:
    """kill -9 of the command: its ranks and loaders die with it, and the next start says that it was interrupted."""
    process = command(tmp_path, NEVER, "--model=nano", f"--launcher={launcher}")
    family = wait_for_step(tmp_path, process, step=1)
    assert len(family) >= 5
    began = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(family, timeout=5)
    record_property("ended_seconds", time.monotonic() - began)
    assert alive(family) == []
    assert status(tmp_path)["state"] == "running"
    killed = (tmp_path / "latest").resolve()
    again = start(tmp_path, "--steps=2", "--gpus=1")
    _, errors = again.communicate(timeout=60)
    assert (again.returncode, f"the last run, {killed.name}, was interrupted" in errors) == (0, True), errors
    assert json.loads((killed / "status.json").read_text())["state"] == "interrupted"


@pytest.mark.fault(9)
@pytest.mark.parametrize("launcher", ["fork", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_killed_launcher_is_told_apart_from_ranks_that_leave(tmp_path: Path, launcher: str) -> None:
    """kill -9 of the process between the command and its ranks: exit 5, no rank is blamed, nothing stays."""
    process = start(tmp_path, NEVER, f"--launcher={launcher}")
    family = wait_for_step(tmp_path, process)
    psutil.Process(process.pid).children()[0].kill()
    process.communicate(timeout=60)
    assert (process.returncode, status(tmp_path)["culprit"]) == (5, None)
    assert "the process that started the ranks was ended by SIGKILL" in status(tmp_path)["cause"]
    assert alive(family) == []


@pytest.mark.fault(9)
@pytest.mark.parametrize("seconds", [0.15, *(pytest.param(late, marks=pytest.mark.slow) for late in (0.0, 1.0))])
def test_a_command_killed_during_the_start_leaves_nothing(tmp_path: Path, seconds: float) -> None:
    """kill -9 of the command while its launcher still imports: the launcher finds that it is alone, and ends."""
    process = start(tmp_path, NEVER)
    while not (family := psutil.Process(process.pid).children()):
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=10)
    assert alive(family) == []


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, marks=pytest.mark.fault(9)),
        pytest.param(signal.SIGINT, marks=pytest.mark.fault(13)),
    ],
)
def test_data_that_is_half_made_is_no_data(tmp_path: Path, number: signal.Signals) -> None:
    """kill -9 and Ctrl-C while scenes are rendered: no process stays, and no folder that a run would take for a set."""
    argv = ["data", "make", "--model=nano", f"--out={tmp_path / 'set'}", "--train-samples=5000", "--workers=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scalelab", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    partial = tmp_path / ".set.partial"
    while not (partial.is_dir() and any(path.stat().st_size for path in partial.iterdir())):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    psutil.wait_procs(family, timeout=5)
    assert alive(family) == []
    assert not (tmp_path / "set").exists()
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert (process.returncode, partial.exists()) == (130, False)


@pytest.mark.fault(13)
def test_ctrl_c_during_the_start_ends_at_once(tmp_path: Path) -> None:
    """Before the first step there is nothing to finish: exit 130, with a status."""
    process = start(tmp_path, NEVER)
    while not (tmp_path / "latest" / "status.json").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, status(tmp_path)["state"]) == (130, "interrupted")
    assert "Traceback" not in errors


@pytest.mark.fault(10)
def test_a_killed_loader_worker_is_named(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """kill -9 of a loader process: exit 5, the rank it belonged to, the worker, and what may have killed it."""
    process = command(tmp_path, NEVER, "--model=nano", "--workers=1")
    family = wait_for_step(tmp_path, process, step=2)
    rank = psutil.Process(see((tmp_path / "latest").resolve(), 1).pid)
    worker = rank.children()[0]
    began = time.monotonic()
    worker.kill()
    _, errors = process.communicate(timeout=60)
    record_property("ended_seconds", time.monotonic() - began)
    assert process.returncode == 5
    assert status(tmp_path)["culprit"]["rank"] == 1
    for part in (f"pid {worker.pid}", "SIGKILL", "memory"):
        assert part in errors, errors
    assert "Traceback" not in errors
    assert alive(family) == []


@pytest.mark.fault(18)
def test_output_that_nobody_reads_does_not_stop_the_run(tmp_path: Path) -> None:
    """`scalelab run 2>&1 | head -1`: the run goes on to its end."""
    process = start(tmp_path, "--steps=60", stderr=subprocess.STDOUT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert status(tmp_path)["state"] == "finished"
    assert json.loads((tmp_path / "latest" / "summary.json").read_text())["steps"]["measured"] == 60


@pytest.mark.fault(17)
@pytest.mark.slow
def test_a_lost_terminal_under_nohup_is_ignored(tmp_path: Path) -> None:
    """With SIGHUP ignored at the start, as `nohup` does it, a hangup changes nothing."""
    process = start(tmp_path, "--steps=100", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for_step(tmp_path, process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert (process.returncode, status(tmp_path)["state"]) == (0, "finished")


@pytest.mark.fault(13)
def test_ctrl_c_of_the_command_ends_in_order(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Ctrl-C as a terminal sends it: exit 130, a table of what there is, no traceback."""
    process = start(tmp_path, NEVER)
    family = wait_for_step(tmp_path, process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    record_property("ended_seconds", time.monotonic() - began)
    assert process.returncode == 130
    assert "samples/s" in out
    assert "Traceback" not in errors
    assert alive(family) == []
    assert (tmp_path / "latest" / "summary.json").is_file()


@pytest.mark.fault(15)
def test_sigterm_to_every_process_ends_in_order(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """As `scancel` sends it, to the command, launcher, ranks and loaders at once: exit 143, all after one step."""
    process = command(tmp_path, NEVER, "--model=nano", "--workers=1")
    family = wait_for_step(tmp_path, process, step=2)
    began = time.monotonic()
    for member in [psutil.Process(process.pid), *family]:
        member.terminate()
    _, errors = process.communicate(timeout=60)
    record_property("ended_seconds", time.monotonic() - began)
    assert (process.returncode, status(tmp_path)["state"]) == (143, "interrupted"), errors
    counts = [path.read_bytes().count(b'"kind":"step"') for path in (tmp_path / "latest" / "ranks").iterdir()]
    assert len(set(counts)) == 1
    assert alive(family) == []


SECRET = "canary-5f1d7c9a"


@pytest.mark.fault(62)
def test_secrets_reach_no_file(tmp_path: Path) -> None:
    """A secret in the environment, in an address or an exception's text is in no file of the run and not on screen."""
    model = MODEL.replace(
        "return self.layer",
        """
            if self.calls == 3:
                raise ValueError("no answer from https://me:" + os.environ["MY_API_TOKEN"] + "@host/x with "
                                 + os.environ["MY_API_TOKEN"])
            return self.layer""",
    )
    (tmp_path / "micro.py").write_text(textwrap.dedent(model).format(seconds=0))
    environment = {**os.environ, "MY_API_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "NCCL_DEBUG": "WARN"}
    process = command(tmp_path, f"--model={tmp_path / 'micro.py'}", env=environment)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "no answer from https://" in errors
    files = [path for path in (tmp_path / "latest").resolve().rglob("*") if path.is_file()]
    assert len(files) > 5
    for text in (out, errors, *(path.read_text(errors="replace") for path in files)):
        assert SECRET not in text
    variables = json.loads((tmp_path / "latest" / "run.json").read_text())["environment"]["variables"]
    assert variables["NCCL_DEBUG"] == "WARN"


@pytest.mark.fault(9, 10)
@pytest.mark.slow
def test_kills_in_any_moment_leave_no_file(tmp_path: Path) -> None:
    """Twelve runs whose command, rank or loader is killed at any moment: nothing of theirs in /dev/shm or /tmp."""

    def left() -> set[Path]:
        return {*Path("/dev/shm").glob("torch_*"), *Path("/tmp").glob("torchelastic_*"), *Path("/tmp").glob("pymp-*")}

    before = left()
    for index in range(12):
        out = tmp_path / str(index)
        launcher = ("fork", "torchrun")[index % 2]
        process = command(out, NEVER, "--model=nano", "--workers=2", f"--launcher={launcher}")
        family = wait_for_step(out, process, step=1)
        time.sleep(0.037 * index)
        rank = psutil.Process(see((out / "latest").resolve(), 1).pid)
        victim = (process, rank, rank.children()[0])[index % 3]
        victim.kill()
        process.communicate(timeout=60)
        psutil.wait_procs(family, timeout=5)
        assert alive(family) == []
        if victim is process:
            # What a killed command could not take away, the next start does.
            start(out, "--steps=1").communicate(timeout=60)
    assert left() - before == set()
