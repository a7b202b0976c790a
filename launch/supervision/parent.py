"""No process outlives the one that started it. As a program: torchrun, with that promise.

`python -m scalelab.launch.supervision.parent RUN_FOLDER TORCHRUN_ARGUMENTS`
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from ..errors import Exit
from ..ranks import first_rank
from .pulse import record_end

PR_SET_PDEATHSIG = 1
# The pid of whoever starts a program of ours: it may be gone before the program can look for it.
PARENT_VARIABLE = "SCALELAB_PARENT"
# Sent to a whole group (a Slurm step, a terminal): the supervisor and the ranks act on them, launchers do not.
FOR_RANKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def die_with_parent(parent: int | None = None, by: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel (Linux) to send this process `by` when its parent ends, however it ends.

    `parent` is its pid where it is known: should it have ended already, this process ends now.
    """
    if sys.platform == "linux":
        parent = parent or os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
        if os.getppid() != parent:
            os._exit(Exit.WORKER_DIED)


def leave_signals_to_ranks() -> None:
    """Ignore what is meant for the ranks."""
    for number in FOR_RANKS:
        signal.signal(number, signal.SIG_IGN)


def redirect_output(path: Path) -> None:
    """Send this process's output, that of libraries included, to `path`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def given_parent() -> int | None:
    """The pid of this program's parent, as the parent gave it."""
    return int(os.environ[PARENT_VARIABLE]) if PARENT_VARIABLE in os.environ else None


def main() -> None:
    die_with_parent(given_parent())
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    leave_signals_to_ranks()
    folder = Path(sys.argv[1])
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(sys.argv[2:]))
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            # torchrun counts from 0 on each host.
            record_end(folder, first_rank() + rank, failure.exitcode)
        raise


if __name__ == "__main__":
    main()
