"""Experiment trackers that a finished run can be sent to: one file each, in a process of its own, under a time limit.

Such a file has PACKAGE (what must be importable), PIP (what installs it) and `send(told, folder)`, which sends what
`profiles.analysis.tracked` says of the run in `folder` and returns where it can be seen.
"""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, PreflightError
from ..text import redacted
from ..validation import unknown

LATER = "the run and its folder are as they were; push it again later"
SHOWN_CHARACTERS = 600


def names() -> list[str]:
    return sorted(each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_"))


def check(name: str) -> None:
    """Raise ConfigError for a tracker that is not known."""
    if name not in names():
        raise ConfigError(unknown("--to", name, names()))


def send(name: str, told: Mapping[str, Any], folder: Path, timeout: float) -> str:
    """Send `told` to the tracker `name`, and return where it can be seen.

    Raises ConfigError for a tracker that is not known, PreflightError for one whose package is missing, that refuses or
    that does not answer within `timeout` seconds.
    """
    check(name)
    tracker = importlib.import_module(f".{name}", __package__)
    if importlib.util.find_spec(tracker.PACKAGE) is None:
        raise PreflightError(f"--to {name}: the package {tracker.PACKAGE} is not installed", hint=tracker.PIP)
    command = [sys.executable, "-P", "-m", f"{__package__}._child", name, str(folder)]
    try:
        done = subprocess.run(
            command, input=json.dumps(told), capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PreflightError(f"{name} did not answer within {timeout:g} s", hint=LATER) from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        said = redacted(lines[-1])[:SHOWN_CHARACTERS]
        raise PreflightError(f"{name} did not take it: {said}", hint=LATER)
    return done.stdout.strip().splitlines()[-1]
