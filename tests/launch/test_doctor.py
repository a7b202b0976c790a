"""What `scalelab doctor` says of a machine, and what it measures of it: real ranks, real runs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from scalelab.launch import calibrations, environment
from scalelab.launch.commands import doctor
from scalelab.launch.devices import Devices, detect
from scalelab.launch.doctor import calibrate, checks
from scalelab.launch.doctor.quiet import OthersWatch
from scalelab.launch.doctor.ranks import RanksError, measure_on_ranks
from scalelab.profiles.analysis.wire import wire_factor
from scalelab.profiles.calibration import BusyCores, Calibration

from tests.launch.test_run import QUICK, model_file
from tests.profiles.test_calibration import CALIBRATION
from tests.support.command import scalelab

CUDA = Devices("cuda", 2, "NVIDIA H100", 80 << 30, compute_capability=(9, 0))
OLD_CUDA = Devices("cuda", 1, "Tesla V100", 16 << 30, compute_capability=(7, 0))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder without calibrations."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, Any]]:
    """The environment and the result of `scalelab doctor --calibrate` with short measurements and no run."""
    variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    code, found, errors = scalelab(
        *(
            "doctor",
            "--calibrate",
            "--repeats=0",
            "--seconds=0.01",
            "--name=mine",
            "--json",
            f"--out={tmp_path_factory.mktemp('out')}",
        ),
        env=variables,
    )
    assert code == 0, errors
    return variables, found


def test_the_doctor_measures_what_it_names(calibrated: tuple[dict[str, str], dict[str, Any]]) -> None:
    """Every rate with its spread; what a CPU has not is null with a reason; no line is FAIL."""
    _, found = calibrated
    lines = {check["name"]: check for check in reversed(found["checks"])}
    assert {check["state"] for check in lines.values()} <= {"OK", "WARN"}
    assert lines["process group"]["state"] == "OK"
    assert lines["calibration"]["state"] == "WARN"
    calibration = found["calibration"]
    assert Path(calibration.pop("file")).name.startswith("mine-")
    read = Calibration.model_validate(calibration)
    assert set(read.matmul_flops_per_second) == {"fp32", "bf16", "fp16"}
    for rate in (*read.matmul_flops_per_second.values(), read.memory_bytes_per_second):
        assert 0 < rate.p10 <= rate.median <= rate.p90
    assert read.host_to_device_bytes_per_second is None
    assert read.run_spread is None
    if sys.platform == "linux":
        assert read.others_busy_cores is not None
        assert 0 <= read.others_busy_cores.median <= read.others_busy_cores.cores
    assert {check["found"] for check in found["checks"][-len(read.doubts) :] if read.doubts} == {
        f"{doubt}: repeat on a quiet machine" for doubt in read.doubts
    }
    assert set(read.reasons) == {"host_to_device_bytes_per_second", "device_to_host_bytes_per_second", "run_spread"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_others_at_work_are_seen_and_our_own_are_not() -> None:
    """A process of somebody else that spins counts, ours does not."""
    spin = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    # A process whose parent has ended is nobody's of ours.
    orphan = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {spin!r}], stdout=2).pid)"
    with contextlib.ExitStack() as stack:
        for ours in (True, False):
            command = [sys.executable, "-c", spin if ours else orphan]
            started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            pid = started.pid if ours else int(started.communicate()[0])
            with OthersWatch() as watch:
                time.sleep(3)
            os.kill(pid, signal.SIGKILL)
            stack.enter_context(started)
            first, last = watch._readings[0], watch._readings[-1]
            assert (last.own_core_seconds - first.own_core_seconds > 0.3) == ours
            found = watch.found()
            assert found is not None
            assert found.count >= 3
    assert found.median > 0.2


def test_a_doubtful_calibration_is_a_warning(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When it is made, and whenever doctor looks at it afterwards."""
    noisy = CALIBRATION.model_copy(update={"others_busy_cores": BusyCores.of([1.5, 1.8, 1.9], cores=2)})
    monkeypatch.setattr(doctor, "calibrate", lambda *_, **__: noisy)
    monkeypatch.setattr(doctor, "checks", lambda *_: iter(()))
    assert doctor.main(["--calibrate"]) == 0
    told = "others kept 1.8 of 2 cores busy while this was measured"
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if told in line] == ["WARN"]
    assert doctor.main(["--calibrate", "--json"]) == 0
    found = orjson.loads(capsys.readouterr().out)
    assert [(check["name"], check["state"]) for check in found["checks"]] == [("calibration", "WARN")]
    assert found["calibration"]["others_busy_cores"]["p90"] == 1.9
    monkeypatch.setattr(environment, "available_cores", lambda: CALIBRATION.cores)
    check = checks._calibration(Devices("cpu", 0, CALIBRATION.device_name, None), CALIBRATION.ranks)
    assert (check.state, told in check.found) == ("WARN", True)


def test_runs_of_a_kind_tell_their_spread() -> None:
    """The standard deviation of their rates over the mean."""
    found = calibrate._spread("ddp", [9.0, 10.0, 11.0])
    assert (found.relative_sd, found.samples_per_second) == (pytest.approx(0.1), [9.0, 10.0, 11.0])


@pytest.mark.slow
def test_a_run_for_the_spread_is_a_real_one() -> None:
    assert calibrate._rate("single", 1) > 0


def test_gloo_sends_what_the_formula_says(calibrated: tuple[dict[str, str], dict[str, Any]]) -> None:
    """Bytes that ranks sent for each byte of payload, against the formula that runs' wire bytes come from."""
    factors = calibrated[1]["calibration"]["wire_factor"]
    known = {kind: formula for kind in factors if (formula := wire_factor(kind, 2, "cpu")) is not None}
    assert set(known) == {"all_reduce", "all_gather", "reduce_scatter", "broadcast"}
    assert {kind: factors[kind] for kind in known} == pytest.approx(known, rel=0.03)


def test_a_run_is_held_against_its_machine(calibrated: tuple[dict[str, str], dict[str, Any]], tmp_path: Path) -> None:
    """By name and date, with what its collectives would take alone."""
    variables, found = calibrated
    options = (f"--model={model_file(tmp_path)}", "--gpus=2", f"--out={tmp_path / 'runs'}", "--device=cpu", *QUICK)
    code, summary, errors = scalelab("run", *options, env=variables)
    assert code == 0, errors
    made = Calibration.model_validate({name: each for name, each in found["calibration"].items() if name != "file"})
    assert summary["calibration"] == {"name": "mine", "made_utc": made.made_utc, "doubts": made.doubts}
    assert summary["utilization"]["peak"]["source"] == f"measured, {made.label}"
    assert 0 < summary["comm"]["alone_seconds"] < 0.1


@pytest.mark.fault(39)
def test_what_cannot_be_read_is_no_calibration(own_cache: Path) -> None:
    """A file cut short is left out, and the doctor names it."""
    folder = own_cache / "scalelab" / "calibrations"
    folder.mkdir(parents=True)
    (folder / "broken-20260101T000000Z.json").write_text('{"schema_version": 1, "name"')
    odd = CALIBRATION.model_dump_json().replace('"median":0.002', '"median":0.0')
    (folder / "odd-20260101T000000Z.json").write_text(odd)
    new = CALIBRATION.model_copy(update={"schema_version": 2})
    (folder / "new-20260101T000000Z.json").write_text(new.model_dump_json())
    (folder / "renamed.json").write_text(CALIBRATION.model_dump_json())
    found, broken = calibrations.read()
    assert [calibration.name for calibration in found] == ["a"]
    assert {path.name.partition("-")[0]: "median" in why for path, why in broken.items()} == {
        "broken": False, "odd": True, "new": False,
    }  # fmt: skip
    check = checks._calibration(detect(), 2)
    assert (check.state, "broken" in check.found) == ("WARN", True)


@pytest.mark.fault(39)
@pytest.mark.parametrize("other", [{"device_name": "another"}, {"device": "cuda"}, {"cores": CALIBRATION.cores + 1}])
def test_another_machines_is_not_used(own_cache: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]) -> None:
    """One of this machine is found; of another device or number of cores none is, and none where there is none."""
    monkeypatch.setattr(environment, "available_cores", lambda: CALIBRATION.cores)
    mine = (CALIBRATION.device, CALIBRATION.device_name, CALIBRATION.ranks)
    assert calibrations.for_run(*mine) is None
    calibrations.store(CALIBRATION.model_copy(update=other))
    assert calibrations.for_run(*mine) is None
    calibrations.store(CALIBRATION)
    assert calibrations.for_run(*mine) is not None


@pytest.mark.fault(39)
def test_a_cache_of_somebody_else_is_no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be looked into, or no home: a run goes on without, and the doctor fails by name."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(calibrations, "cache_folder", nowhere)
    assert calibrations.for_run("cpu", "c", 2) is None
    assert checks._place("cache", nowhere).state == "FAIL"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name=../x"], "--name"),
        (["--gpus=0"], "--gpus"),
        (["--repeats=-1"], "--repeats"),
        (["--calibrat"], "--calibrate"),
    ],
)
def test_bad_usage_is_refused_with_the_option(arguments: list[str], said: str) -> None:
    code, found, errors = scalelab("doctor", *arguments)
    assert code == 2
    assert said in errors
    assert found == {}


def test_a_place_that_cannot_be_written_fails(tmp_path: Path) -> None:
    """Exit 3, and the line is FAIL; no rate is measured then."""
    (tmp_path / "file").write_text("")
    code, found, _ = scalelab("doctor", "--calibrate", "--json", f"--out={tmp_path / 'file' / 'runs'}")
    assert code == 3
    assert {check["name"] for check in found["checks"] if check["state"] == "FAIL"} == {"run folders"}
    assert found["calibration"] is None


def test_precisions_follow_the_device() -> None:
    """TF32 is CUDA's alone, and an old card has neither it nor bf16."""
    on_cuda = {check.name: check.state for check in checks._precisions(CUDA)}
    assert set(on_cuda.values()) == {"OK"}
    on_old = {check.name: check.state for check in checks._precisions(OLD_CUDA)}
    assert {name for name, state in on_old.items() if state == "OK"} == {"--precision fp32", "--precision fp16"}
    assert {check.name: check.state for check in checks._precisions(detect())}["--precision fp32"] == "OK"


def test_a_quota_below_the_cores_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a container may use is less than what it sees; cgroup v2 and v1."""
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert checks._cpu_quota(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert checks._cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert checks._cpu_quota(tmp_path) == 1.5
    monkeypatch.setattr(checks, "_cpu_quota", lambda: 0.5)
    assert checks._cores(1, detect()).state == "WARN"


def test_ranks_that_fail_are_named() -> None:
    """A rank's error is the last line that it said; nobody is waited for then."""
    with pytest.raises(RanksError, match=r"rank \d failed: .*KeyError: 'nothing'"):
        measure_on_ranks("nothing", 2, "cpu", {}, timeout_seconds=60)
