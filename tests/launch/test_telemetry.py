"""The side process that reads cards is a real one: it never holds a run up, and never outlives it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from msgspec import structs
from scalelab.launch.config import build
from scalelab.launch.devices import detect
from scalelab.launch.plan import Plan, resolve
from scalelab.launch.supervision import telemetry
from scalelab.launch.supervision.supervisor import supervise
from scalelab.profiles.records import StartRecord, StepRecord
from scalelab.profiles.runfolder import RunFolder, appending
from scalelab.profiles.used import TelemetryLackRecord, TelemetryRecord

from tests.profiles.test_telemetry import UUIDS, start
from tests.support import fake_nvml, supervised
from tests.support.command import scalelab
from tests.support.fake_nvml import VARIABLE
from tests.support.supervised import Outcome, run_supervised

LIMIT_SECONDS = 30.0
CARDS = [{"uuid": f"GPU-{UUIDS[0]}", "watts": 100.0}, {"uuid": f"GPU-{UUIDS[1]}", "watts": 700.0}]


@pytest.fixture(autouse=True)
def fake_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that import pynvml get the stand-in, with two cards."""
    place = tmp_path / "modules"
    place.mkdir()
    shutil.copy(str(fake_nvml.__file__), place / "pynvml.py")
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv(VARIABLE, json.dumps({"cards": CARDS}))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run whose rank 0 has written down its card."""
    folder = RunFolder.create(tmp_path, "x")
    with appending(folder.rank_file(0)) as write:
        write(start(0))
    return folder


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def readings(folder: RunFolder) -> list[TelemetryRecord]:
    """Of host 0, in the order in which they were written."""
    found = [record for records, _ in folder.telemetry() for record in records]
    return [record for record in found if isinstance(record, TelemetryRecord)]


def is_there(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def side(folder: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
    process = telemetry.start(folder, 0, range(1))
    yield process
    process.kill()
    telemetry.end(process)


def test_the_process_reads_the_ranks_card_until_it_is_ended(folder: RunFolder, side: subprocess.Popen[bytes]) -> None:
    """On the host's own clock, and once more when it is told to end."""
    began_ns = time.perf_counter_ns()
    until(lambda: readings(folder))
    asked_ns = time.perf_counter_ns()
    telemetry.end(side)
    assert side.returncode == 0
    found = readings(folder)
    assert {reading.power_watts for reading in found} == {100.0}
    assert began_ns < found[0].at_ns < asked_ns < found[-1].at_ns < time.perf_counter_ns()
    assert (folder.path / "logs" / "telemetry-h000.log").read_bytes() == b""


def test_it_waits_for_all_ranks_to_say_their_card(folder: RunFolder) -> None:
    """Before, it is not known what to read."""
    looks = 0

    def stopped(seconds: float) -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            with appending(folder.rank_file(1)) as write:
                write(start(1))
        return False

    assert telemetry.uuids_of(folder, range(2), stopped) == dict(enumerate(UUIDS))
    assert looks == 2


def test_a_run_that_ends_before_its_ranks_said_their_card_has_no_file(tmp_path: Path) -> None:
    """The process ends all the same."""
    early = RunFolder.create(tmp_path, "early")
    process = telemetry.start(early, 0, range(1))
    telemetry.end(process)
    assert not early.telemetry()


@pytest.mark.fault(40)
def test_the_process_without_nvml_says_so_and_ends(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not stay for nothing."""
    monkeypatch.setenv(VARIABLE, json.dumps({"cards": [], "broken": "LibraryNotFound"}))
    process = telemetry.start(folder, 0, range(1))
    assert process.wait(LIMIT_SECONDS) == 0
    ((records, _),) = folder.telemetry()
    assert isinstance(records[1], TelemetryLackRecord)
    assert records[1].why == "NVML does not load: LibraryNotFound"
    telemetry.end(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_the_whole_job_leave_it_reading(
    folder: RunFolder, side: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    """Ranks act on them and end their step: the card is read until they have."""
    until(lambda: readings(folder))
    side.send_signal(number)
    seen = len(readings(folder))
    until(lambda: len(readings(folder)) > seen + 1)
    assert side.poll() is None


SUPERVISOR = """
import sys, time
from pathlib import Path
from scalelab.launch.supervision import telemetry
from scalelab.profiles.runfolder import RunFolder
print(telemetry.start(RunFolder(Path(sys.argv[1])), 0, range(1)).pid, flush=True)
time.sleep(600)
"""


@pytest.mark.fault(9)
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_a_supervisor_that_is_killed_takes_the_process_with_it(folder: RunFolder, stopped: bool) -> None:
    """By kill -9, and also when the process itself would not see its input end."""
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(folder.path)], stdout=subprocess.PIPE)
    with supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        until(lambda: readings(folder))
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        supervisor.kill()
    until(lambda: not is_there(pid))


def with_card(rank: int) -> None:
    """In a rank, before it trains: it writes down a planted card."""
    from scalelab.launch import worker

    known = worker.start_record

    def start_record(*args: Any) -> StartRecord:
        return structs.replace(known(*args), device_uuid=UUIDS[rank])

    worker.start_record = start_record


def cuda_run(place: Path, **options: Any) -> Outcome:
    """Two ranks on CPU under the real supervisor, which takes their device for CUDA; they have planted cards."""

    def on_cuda(folder: RunFolder, plan: Plan, *args: Any, **more: Any) -> dict[str, Any]:
        return supervise(folder, replace(plan, setting=replace(plan.setting, device="cuda")), *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervised, "supervise", on_cuda)
        return run_supervised(place, plant=with_card, **options)


def own_children() -> set[int]:
    return {
        child.pid for child in psutil.Process().children(recursive=True) if "telemetry" in " ".join(child.cmdline())
    }


def test_a_run_has_the_readings_of_all_its_steps(tmp_path: Path) -> None:
    """From before the first step to after the last, on the clock of the steps; nothing stays behind."""
    outcome = cuda_run(tmp_path, steps=60, seconds=0.05)
    assert outcome.status["exit_code"] == 0
    steps = [
        record
        for record in outcome.folder.records(0)[0]
        if isinstance(record, StepRecord) and record.role == "measured"
    ]
    found = [reading.at_ns for reading in readings(outcome.folder) if reading.card == 0]
    begins = [record.begin_ns for record in steps]
    assert begins[0] is not None
    assert begins[-1] is not None
    assert found[0] < begins[0] < begins[-1] < found[-1]
    assert not own_children()


def test_a_side_process_that_is_killed_leaves_the_run_alone(tmp_path: Path) -> None:
    """The run ends well, without the rest of the readings."""

    def kill(folder: RunFolder) -> None:
        until(lambda: readings(folder))
        (pid,) = own_children()
        os.kill(pid, signal.SIGKILL)

    outcome = cuda_run(tmp_path, steps=30, act=kill)
    assert outcome.status["exit_code"] == 0
    assert outcome.steps(0) == 31
    assert not own_children()


def test_a_side_process_that_does_not_answer_is_killed(folder: RunFolder, side: subprocess.Popen[bytes]) -> None:
    """As one whose driver does not: stopped, it sees no end of its input."""
    until(lambda: readings(folder))
    side.send_signal(signal.SIGSTOP)
    telemetry.end(side)
    assert side.returncode == -signal.SIGKILL


def plan_on(device: Literal["cpu", "cuda"]) -> Plan:
    plan = resolve(build({"model": "nano", "device": "cpu", "gpus": 1}), detect())
    return replace(plan, setting=replace(plan.setting, device=device))


def test_a_side_process_that_cannot_be_started_leaves_the_run_alone(folder: RunFolder) -> None:
    """Where not even its log can be opened, the run goes on without telemetry."""
    shutil.rmtree(folder.path / "logs")
    ran = []
    with telemetry.watched_cards(folder, plan_on("cuda")):
        ran.append(own_children())
    assert ran == [set()]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_is_started_on_cuda_alone(folder: RunFolder, device: Literal["cpu", "cuda"]) -> None:
    """On CPU there is no process and no file; on CUDA one process, for as long as the run lasts."""
    with telemetry.watched_cards(folder, plan_on(device)):
        assert len(own_children()) == (device == "cuda")
        until(lambda: device == "cpu" or readings(folder))
    assert not own_children()
    assert bool(folder.telemetry()) == (device == "cuda")


def test_it_starts_without_torch() -> None:
    """The process is there before the ranks have imported theirs, and takes no card's memory."""
    script = "import sys, scalelab.launch.supervision.telemetry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.gpu
def test_a_real_card_tells_its_power_and_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few seconds of training: the card was busy and drew power, by whatever means it gives, or says why not."""
    monkeypatch.delenv("PYTHONPATH")
    code, summary, errors = scalelab(
        "run", "--model=nano", "--gpus=1", f"--out={tmp_path}", "--steps=300", "--warmup=10", "--micro-batch=16",
        "--json",
    )  # fmt: skip
    assert code == 0, errors
    found, reasons = summary["utilization"], summary["reasons"]
    for name in ("gpu_percent", "power_watts", "joules_per_sample", "sm_clock_mhz", "p99_h2d_seconds"):
        assert (found[name] is None) == (f"utilization.{name}" in reasons)
        assert found[name] is None or found[name] > 0
    assert found["gpu_percent"] is None or found["gpu_percent"] <= 100
    assert len(found["cards"] or []) <= 1
