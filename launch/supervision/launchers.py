"""The two ways to start the ranks of one host: forked from a process that has imported everything, or by torchrun."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import IO, Protocol

import orjson

from ...profiles.runfolder import RunFolder
from ..config import OPTIONS_VARIABLE
from ..plan import Plan
from ..ranks import FIRST_RANK_VARIABLE
from .parent import PARENT_VARIABLE

LOG = "launcher.log"


class Launcher(Protocol):
    """The process that starts the ranks, in a session of its own: a Ctrl-C does not reach it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        ...


Start = Callable[[RunFolder, Plan], Launcher]
"""Starts the launcher that the plan names; it reads the rest from the folder."""


@contextlib.contextmanager
def launching(plan: Plan) -> Iterator[Start]:
    """Within, what starts the launcher of `plan`. One that forks begins to import at once, beside whatever comes before
    the ranks; not called for, it is ended."""
    if plan.config.launcher == "torchrun":
        yield _torchrun
        return
    command = [sys.executable, "-m", "scalelab.launch.supervision.forker", plan.config.strategy]
    # Read by OpenMP when torch is imported.
    environment = {**_environment(plan), "OMP_NUM_THREADS": str(plan.threads_per_rank)}
    with tempfile.TemporaryFile() as early:
        # What it says before there is a folder, it writes into its log itself when there is one.
        forker = start_forker([*command, orjson.dumps(asdict(plan.setting)).decode()], environment, early)
        order, before, log = forker.stdin, dict(os.environ), None
        assert order is not None

        def start(folder: RunFolder, plan: Plan) -> Launcher:
            nonlocal log
            log = folder.path / "logs" / LOG
            # Hosts that have met have set where the store is, and the interface to each other.
            since = {name: value for name, value in os.environ.items() if before.get(name) != value}
            # Should it be gone, its exit code tells.
            with contextlib.suppress(BrokenPipeError), order:
                order.write(orjson.dumps([str(folder.path), len(plan.local_ranks), since]))
            return forker

        try:
            yield start
        finally:
            if log is None:
                forker.kill()
                forker.wait()
                order.close()
            elif not log.exists():
                # It ended before it took the order: killed, or by a library's own abort.
                early.seek(0)
                with contextlib.suppress(OSError):
                    log.write_bytes(early.read())


def start_forker(command: list[str], environment: Mapping[str, str], says: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process of `command`, in a session of its own: it waits for an order and writes into `says`. By itself, so
    that it can be forked from one that has imported all."""
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=says, stderr=says, start_new_session=True
    )


def _torchrun(folder: RunFolder, plan: Plan) -> Launcher:
    environment = _environment(plan)
    environment["OMP_NUM_THREADS"] = str(plan.threads_per_rank)
    # Its ranks take signals themselves; torchrun would end them at once.
    torchrun = ["--standalone", f"--nproc-per-node={plan.config.gpus}", "--signals-to-handle=SIGQUIT"]
    # Else it leaves a folder in the system's temporary one when it is killed.
    torchrun.append(f"--log-dir={folder.path / 'live' / 'torchrun'}")
    worker = ["-m", "scalelab.launch.supervision.torchrun_rank", str(folder.path)]
    command = [sys.executable, "-m", "scalelab.launch.supervision.parent", str(folder.path), *torchrun, *worker]
    with open(folder.path / "logs" / LOG, "ab") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _environment(plan: Plan) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        FIRST_RANK_VARIABLE: str(plan.local_ranks.start),
        PARENT_VARIABLE: str(os.getpid()),
        OPTIONS_VARIABLE: orjson.dumps(plan.config.model_option).decode(),
    }
