"""What make starts, when make is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.test_command import NEVER
from tests.support.supervised import MODEL


@pytest.mark.fault(9)
def test_a_killed_make_ends_its_run(tmp_path: Path) -> None:
    """In order, as SIGTERM to the command would."""
    (tmp_path / "micro.py").write_text(textwrap.dedent(MODEL).format(seconds=0.02))
    (tmp_path / "Makefile").write_text(f"run:\n\t@{sys.executable} -m scalelab.launch.make_front run\n")
    options = ["MODEL=micro.py", "GPUS=1", "OUT=runs", f"STEPS={NEVER.partition('=')[2]}"]
    make = subprocess.Popen(
        ["make", "run", *options], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    records = tmp_path / "runs" / "latest" / "ranks" / "r000.jsonl"
    while not (records.exists() and b'"step"' in records.read_bytes()):
        assert make.poll() is None
        time.sleep(0.05)
    family = psutil.Process(make.pid).children(recursive=True)
    make.send_signal(signal.SIGKILL)
    make.wait()
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert b"stopped by SIGTERM" in (records.parents[1] / "status.json").read_bytes()
