"""No process outlives the one that started it. As a program: torchrun, with that promise.

`python -m scalelab.launch.supervision.parent TORCHRUN_ARGUMENTS`
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from ..errors import Exit

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when its parent ends, however it ends."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(Exit.WORKER_DIED)


def main() -> None:
    die_with_parent()
    from torch.distributed.run import main as torchrun

    torchrun()


if __name__ == "__main__":
    main()
