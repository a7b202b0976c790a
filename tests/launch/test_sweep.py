"""`scalelab sweep` from the command line to its table: real runs, a real wrong reduce, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from scalelab.launch.make_front import options
from scalelab.profiles.sweepfolder import SweepFolder

from tests.support.command import scalelab
from tests.support.wrong_reduce import MODEL

SMALL = ["--strategies=ddp,zero1,single", "--gpus=2", "--repeats=1", "--steps=2", "--warmup=2", "--memory-step=off"]


@pytest.mark.fault(42)
def test_a_wrong_reduce_is_caught_and_its_repair_found(tmp_path: Path) -> None:
    """A ZeRO-1 that does not reduce trains something else: exit 8 for its run, 10 for the sweep, no speed of it. With
    its fault mended, which is not in the model's own file, a second call makes that run alone. The cell that cannot run
    stays, with its reason."""
    model = tmp_path / "net.py"
    fault = tmp_path / "fault"
    fault.touch()
    model.write_text(f"from pathlib import Path\n{MODEL.format(wrong=f'Path({str(fault)!r}).exists()')}")
    sweep = ["sweep", f"--model={model}", f"--out={tmp_path / 'out'}", *SMALL, "--json"]
    code, summary, errors = scalelab(*sweep)
    assert code == 10, errors
    found = {cell["strategy"]: cell for cell in summary["cells"]}
    assert (found["ddp"]["state"], found["ddp"]["parity"]["state"]) == ("measured", "reference")
    assert (found["zero1"]["state"], found["zero1"]["samples_per_second"]) == ("parity_failed", None)
    assert "grad_norm of step 0" in found["zero1"]["why"]
    assert (found["single"]["state"], "use --gpus 1" in found["single"]["why"]) == ("refused", True)
    folder = SweepFolder(Path(summary["sweep_folder"]))
    attempts, _ = folder.attempts()
    run = folder.run(attempts["zero1-fp32-2ranks", 1])
    assert run is not None
    assert run.read("summary.json")["step_seconds"]["mean"] is None
    assert run.read("status.json")["exit_code"] == 8

    fault.unlink()
    code, summary, errors = scalelab(*sweep)
    assert code == 0, errors
    assert "1 run to make (1 is there)" in errors
    found = {cell["strategy"]: cell for cell in summary["cells"]}
    assert (found["zero1"]["state"], found["zero1"]["parity"]["state"]) == ("measured", "held")
    assert len(list(folder.path.glob("*/run.json"))) == 3 + 1  # three runs, and `latest`


@pytest.fixture
def long_sweep(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep of runs without end, in `tmp_path/out`."""
    model = tmp_path / "net.py"
    model.write_text(MODEL.format(wrong=False))
    command = ["sweep", f"--model={model}", f"--out={tmp_path / 'out'}", *SMALL[:3], "--steps=1000000", "--grace=30"]
    process = subprocess.Popen([sys.executable, "-m", "scalelab", *command], stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def wait_for_training(process: subprocess.Popen[bytes], out: Path) -> list[psutil.Process]:
    """The processes of the sweep's run, once its ranks train."""
    while not any("step " in log.read_text() for log in out.glob("sweep-*/logs/*.log")):
        assert process.poll() is None
        time.sleep(0.1)
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_whatever_ends_a_sweep_ends_its_run(
    tmp_path: Path, long_sweep: subprocess.Popen[bytes], number: signal.Signals, code: int
) -> None:
    """Ctrl-C is passed on and waited for, and the attempt written down; after a kill -9 nothing is left running."""
    below = wait_for_training(long_sweep, tmp_path / "out")
    assert below
    os.kill(long_sweep.pid, number)
    assert long_sweep.wait(timeout=60) == code
    _, alive = psutil.wait_procs(below, timeout=30)
    assert alive == []
    folder = SweepFolder((tmp_path / "out" / "latest").resolve())
    attempts, _ = folder.attempts()
    assert [each.exit_code for each in attempts.values()] == ([130] if number == signal.SIGINT else [])
    status = json.loads((folder.path / "latest" / "status.json").read_text())
    assert status["state"] == ("interrupted" if number == signal.SIGINT else "running")


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    """It prints the plan: cells, refusals and order."""
    code, plan, errors = scalelab("sweep", *SMALL, "--model=nano", f"--out={tmp_path / 'out'}", "--dry-run", "--json")
    assert code == 0, errors
    assert len(plan["order"]) == 2
    assert [cell["refused"] is None for cell in plan["cells"]] == [True, True, False]
    assert not (tmp_path / "out").exists()


def test_a_matrix_that_is_refused_whole_is_an_error(tmp_path: Path) -> None:
    """With the refusal's own code and words; there is no folder then."""
    code, found, _ = scalelab("sweep", "--strategies=single", "--gpus=2,4", f"--out={tmp_path / 'out'}", "--json")
    assert (code, "use --gpus 1" in found["error"]["message"]) == (2, True)
    code, found, _ = scalelab("sweep", "--strategies=ddp", "--device=cuda", f"--out={tmp_path / 'out'}", "--json")
    assert (code, "--device cuda" in found["error"]["message"]) == (3, True)
    assert not (tmp_path / "out").exists()


def test_makes_variables_are_the_sweeps_options() -> None:
    """`STRATEGIES=ddp,zero2` is `--strategies=ddp,zero2`."""
    assert options("STRATEGIES", "ddp,zero2") == ["--strategies=ddp,zero2"]
    assert options("BEST_BATCH", "1") == ["--best-batch=1"]
