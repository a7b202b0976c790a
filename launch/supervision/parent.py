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
from .pulse import record_end

PR_SET_PDEATHSIG = 1
# Sent to a whole group (a Slurm step, a terminal): the supervisor and the ranks act on them, launchers do not.
FOR_RANKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel (Linux) to kill this process when its parent ends, however it ends.

    `parent` is its pid where it is known: should it have ended already, this process ends now.
    """
    if sys.platform == "linux":
        parent = parent or os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(Exit.WORKER_DIED)


def leave_signals_to_ranks() -> None:
    """Ignore what is meant for the ranks."""
    for number in FOR_RANKS:
        signal.signal(number, signal.SIG_IGN)


def main() -> None:
    die_with_parent()
    leave_signals_to_ranks()
    folder = Path(sys.argv[1])
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(sys.argv[2:]))
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            record_end(folder, rank, failure.exitcode)
        raise


if __name__ == "__main__":
    main()
