"""One run of a sweep, in a process of its own that does not outlive the sweep. As a program, that run.

`python -m scalelab.launch.sweep.child RUN_OPTIONS` is `scalelab run RUN_OPTIONS` with that promise.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...profiles.runfolder import RunFolder
from ..errors import Exit
from ..supervision.interrupts import Interrupts
from ..supervision.parent import PARENT_VARIABLE, die_with_parent, given_parent

POLL_SECONDS = 0.1
# Beyond the grace of its ranks, what a run gets to write its end.
LEAVE_SECONDS = 20.0


@dataclass(frozen=True)
class Ended:
    """How a run ended. `run` is its folder, None if it was refused before it had one."""

    exit_code: int
    cause: str | None
    run: RunFolder | None
    seconds: float


class Make(Protocol):
    """Makes one run."""

    def __call__(
        self,
        given: Mapping[str, Any],
        *,
        out: Path,
        name: str,
        log: Path,
        interrupts: Interrupts,
        tick: Callable[[], None],
    ) -> Ended: ...


def make_run(
    given: Mapping[str, Any],
    *,
    out: Path,
    name: str,
    log: Path,
    interrupts: Interrupts,
    tick: Callable[[], None],
    prefix: Sequence[str] = (),
) -> Ended:
    """Make the run of the options `given` in `out`, with all that it prints in `log`; signals are passed on to it.
    `prefix` goes before its command.

    Raises OSError when the log cannot be written.
    """
    before = {path.name for path in out.iterdir()}
    log.parent.mkdir(exist_ok=True)
    command = [
        *prefix,
        sys.executable,
        "-m",
        "scalelab.launch.sweep.child",
        *arguments({**given, "out": str(out), "name": name}),
    ]
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid()), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    began, passed_on, deadline = time.monotonic(), interrupts.count, float("inf")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while process.poll() is None:
            while passed_on < interrupts.count:
                number = interrupts.signals[passed_on]
                passed_on += 1
                process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
                if number != signal.SIGUSR1:
                    deadline = min(deadline, time.monotonic() + float(given.get("grace", 10.0)) + LEAVE_SECONDS)
            if time.monotonic() > deadline:
                process.kill()
            tick()
            time.sleep(POLL_SECONDS)
    finally:
        process.kill()
        process.wait()
    seconds = time.monotonic() - began
    new = [path for path in sorted(out.iterdir()) if path.name not in before and (path / "run.json").is_file()]
    folder = RunFolder(new[-1].resolve()) if new else None
    return _ended(process.returncode, folder, log, seconds)


def arguments(given: Mapping[str, Any]) -> list[str]:
    """The options of `scalelab run` for `given`, by field."""
    found = []
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, dict):
            found += [f"{option}={key}={json.dumps(each)}" for key, each in value.items()]
        elif value is not None:
            found.append(f"{option}={str(value).lower() if isinstance(value, bool) else value}")
    return found


def _ended(code: int, folder: RunFolder | None, log: Path, seconds: float) -> Ended:
    if code == Exit.OK and folder is not None:
        return Ended(Exit.OK, None, folder, seconds)
    status = {}
    if folder is not None:
        try:
            status = folder.read("status.json") or {}
        except ValueError as error:
            status = {"cause": str(error)}
    if code < 0:
        cause = status.get("cause") or f"its process was killed by {signal.Signals(-code).name}"
        return Ended(Exit.WORKER_DIED, cause, folder, seconds)
    cause = status.get("cause") or last_error(log)
    return Ended(code or Exit.INTERNAL, cause, folder, seconds)


def last_error(log: Path) -> str:
    """The errors that a run has printed, in one line."""
    lines = log.read_text(errors="replace").splitlines()
    found = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return "; ".join(found) or f"it said nothing of why (see {log})"


def main() -> None:
    die_with_parent(given_parent())
    from ..cli import main as command_line

    command_line(["run", *sys.argv[1:]])


if __name__ == "__main__":
    main()
