"""The two ways to start the ranks of one host: forked from a process that has imported everything, or by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Protocol

from ...profiles.runfolder import RunFolder
from ..plan import Plan
from ..ranks import FIRST_RANK_VARIABLE
from .parent import PARENT_VARIABLE


class Launcher(Protocol):
    """The process that starts the ranks, in a session of its own: a Ctrl-C does not reach it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        ...


def start(folder: RunFolder, plan: Plan) -> Launcher:
    """Start the launcher that `plan` names; it reads the rest from `folder`."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", FIRST_RANK_VARIABLE: str(plan.local_ranks.start)}
    environment[PARENT_VARIABLE] = str(os.getpid())
    command = [sys.executable, "-m", "scalelab.launch.supervision.forker", str(folder.path)]
    if plan.config.launcher == "torchrun":
        environment["OMP_NUM_THREADS"] = str(plan.threads_per_rank)
        # Its ranks take signals themselves; torchrun would end them at once.
        torchrun = ["--standalone", f"--nproc-per-node={plan.config.gpus}", "--signals-to-handle=SIGQUIT"]
        # Else it leaves a folder in the system's temporary one when it is killed.
        torchrun.append(f"--log-dir={folder.path / 'live' / 'torchrun'}")
        worker = ["-m", "scalelab.launch.supervision.torchrun_rank", str(folder.path)]
        command = [sys.executable, "-m", "scalelab.launch.supervision.parent", str(folder.path), *torchrun, *worker]
    with open(folder.path / "logs" / "launcher.log", "ab") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
