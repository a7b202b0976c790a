"""The launcher that imports before there is a run folder: nothing of it is lost, nothing of it is left behind."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from scalelab.launch.config import RunConfig
from scalelab.launch.devices import detect
from scalelab.launch.plan import Plan, resolve
from scalelab.launch.supervision.launchers import launching
from scalelab.profiles.runfolder import RunFolder

PATIENCE_SECONDS = 60.0


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return resolve(RunConfig(device="cpu", gpus=1, steps=1, strategy="single", out=str(tmp_path)), detect())


def mine() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if any("forker" in word for word in each.cmdline())]


def test_what_fails_before_there_is_a_folder_is_told_in_its_log(tmp_path: Path, plan: Plan) -> None:
    """A library that cannot be imported ends the launcher with its traceback in the folder, once there is one."""
    broken = replace(plan, config=plan.config.model_copy(update={"strategy": "no_such_strategy"}))
    with launching(broken) as start:
        folder = RunFolder.create(tmp_path, "x")
        launcher = start(folder, broken)
        until = time.monotonic() + PATIENCE_SECONDS
        while launcher.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
    assert launcher.poll() == 1
    assert "no_such_strategy" in (folder.path / "logs" / "launcher.log").read_text()


def test_a_launcher_that_is_not_called_for_is_gone(plan: Plan) -> None:
    """A model that is refused ends it, whatever it was at."""
    with launching(plan):
        assert len(mine()) == 1
    assert not mine()
