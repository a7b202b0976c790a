"""Starts the ranks of a run, watches them, and says how it ended. Imports no torch.

The ranks live in a session of their own: a Ctrl-C reaches this process alone, which ends them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ...profiles.runfolder import RunFolder
from ..errors import Exit
from ..plan import Plan
from .messages import SOCKET_VARIABLE, Inbox, open_inbox

POLL_SECONDS = 0.2
GRACE_SECONDS = 3.0


class Display(Protocol):
    """What the supervisor shows progress on."""

    def message(self, message: dict[str, Any]) -> None:
        """A rank said something."""
        ...

    def tick(self) -> None:
        """Time has passed."""
        ...


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived."""


def supervise(folder: RunFolder, plan: Plan, display: Display) -> dict[str, Any]:
    """Run all ranks to their end. Writes status.json at the start and at the end, and returns the last one."""
    folder.write("status.json", _status("running", None))
    code: int
    with open_inbox() as inbox, _terminated_on_signals():
        process = _start(folder, plan, inbox)
        try:
            code = _watch(process, inbox, display)
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
        except Terminated:
            code = Exit.TERMINATED
        finally:
            _end(process)
    status = _outcome(folder, code)
    folder.write("status.json", status)
    return status


def _start(folder: RunFolder, plan: Plan, inbox: Inbox) -> subprocess.Popen[bytes]:
    environment = {**os.environ, SOCKET_VARIABLE: str(inbox.path), "PYTHONUNBUFFERED": "1"}
    if plan.config.launcher == "fork":
        command = [sys.executable, "-m", "scalelab.launch.supervision.forker", str(folder.path)]
    else:
        environment["OMP_NUM_THREADS"] = str(plan.threads_per_rank)
        torchrun = [sys.executable, "-m", "scalelab.launch.supervision.parent", "--standalone"]
        command = [
            *torchrun,
            f"--nproc-per-node={plan.world_size}",
            "-m",
            "scalelab.launch.worker",
            str(folder.path),
        ]
    with open(folder.path / "logs" / "launcher.log", "ab") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _watch(process: subprocess.Popen[bytes], inbox: Inbox, display: Display) -> int:
    """Show what comes until the launcher ends; returns its exit code."""
    while True:
        ended = process.poll() is not None
        for message in inbox.receive(0 if ended else POLL_SECONDS):
            display.message(message)
        display.tick()
        if ended:
            return process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process of the run behind: ask its session to end, then kill what is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(folder: RunFolder, code: int) -> dict[str, Any]:
    """The final status from the launcher's exit code and what the ranks wrote of their own end."""
    if code == Exit.OK:
        return _status("finished", Exit.OK)
    if code == Exit.INTERRUPTED:
        return _status("interrupted", Exit.INTERRUPTED, cause="interrupted by Ctrl-C")
    if code == Exit.TERMINATED:
        return _status("interrupted", Exit.TERMINATED, cause="ended by SIGTERM")
    failures = [folder.read(f"errors/{path.name}") for path in sorted((folder.path / "errors").glob("r*.json"))]
    if not failures:
        log = folder.path / "logs"
        return _status(
            "failed", Exit.WORKER_DIED, cause=f"a rank ended without a word (exit {code})", hint=f"see {log}"
        )
    # A peer's death makes the others' collectives fail: a failure with a cause of its own comes before those.
    failure = min(failures, key=_consequence)
    known = failure["exit_code"] != Exit.WORKER_DIED
    culprit = {
        "rank": failure["rank"],
        "host": os.uname().nodename,
        "phase": failure["phase"],
        "step": failure["step"],
    }
    cause = failure["message"] if known else f"{failure['type']}: {failure['message']}"
    log_file = folder.log_file(failure["rank"])
    hint = failure["hint"] or ("" if known else f"the traceback is in {log_file}")
    return _status("failed", failure["exit_code"], culprit=culprit, cause=cause, hint=hint)


def _consequence(failure: dict[str, Any]) -> tuple[bool, int]:
    """Sorts failures that only say that a peer is gone behind the others."""
    text = failure["message"]
    return any(sign in text for sign in ("Connection closed by peer", "Connection reset", "gloo", "NCCL")), failure[
        "rank"
    ]


def _status(
    state: str,
    exit_code: int | None,
    *,
    culprit: dict[str, Any] | None = None,
    cause: str | None = None,
    hint: str | None = None,
) -> dict[str, Any]:
    return {"state": state, "exit_code": exit_code, "culprit": culprit, "cause": cause, "hint": hint}


@contextlib.contextmanager
def _terminated_on_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise `Terminated` in the main thread."""

    def handler(number: int, frame: object) -> None:
        raise Terminated

    previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def user_traceback(folder: RunFolder, status: dict[str, Any], ours: Path) -> str | None:
    """The culprit's traceback from the first frame that is not ours on, when there is such a frame."""
    culprit = status["culprit"]
    if culprit is None:
        return None
    failure = folder.read(f"errors/r{culprit['rank']:03d}.json")
    if failure is None or failure["exit_code"] != Exit.WORKER_DIED:
        return None
    lines = failure["traceback"].splitlines()
    frames = [index for index, line in enumerate(lines) if line.startswith('  File "')]
    foreign = [index for index in frames if str(ours) not in lines[index] and "site-packages" not in lines[index]]
    foreign = [index for index in foreign if "<frozen" not in lines[index] and "/contextlib.py" not in lines[index]]
    return "\n".join(lines[foreign[0] :]) if foreign else None
