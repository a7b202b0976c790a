"""Starts CPU ranks by forking one process that has imported everything: eight ranks start as fast as one.

`python -m scalelab.launch.supervision.forker RUN_FOLDER`. torchrun would import torch once in its agent and once in each
rank,
which on a few cores is most of a short run. Each rank sees the environment variables that torchrun sets.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from ...profiles.runfolder import RunFolder
from ..config import RunConfig
from ..errors import Exit
from ..ranks import LISTENER_VARIABLE, Rank, listen_on_free_port
from ..setting import Setting
from .messages import Sender
from .parent import die_with_parent

# How long the other ranks may take to end by themselves after one has failed.
GRACE_SECONDS = 2.0


def main() -> None:
    die_with_parent()
    folder = RunFolder(Path(sys.argv[1]))
    run_json = folder.read("run.json")
    config, setting = RunConfig(**run_json["config"]), Setting(**run_json["setting"])
    # Read by OpenMP when torch is imported.
    os.environ["OMP_NUM_THREADS"] = str(run_json["threads_per_rank"])
    send = Sender(rank=-1)
    send(state="importing")
    from .. import strategies, worker

    strategies.load(config.strategy).preload(setting)
    listener = listen_on_free_port()
    port = listener.getsockname()[1]
    children: dict[int, int] = {}
    for index in range(setting.world_size):
        rank = Rank(rank=index, local_rank=index, world_size=setting.world_size, local_world_size=setting.world_size)
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            os.environ.update(rank.environment(port))
            os.environ[LISTENER_VARIABLE] = str(listener.fileno())
            worker.redirect_output(folder.log_file(index))
            worker.leave(worker.run_rank(folder, rank))
        children[pid] = index
    listener.close()
    sys.exit(_reap(children, folder))


def _reap(children: dict[int, int], folder: RunFolder) -> int:
    """Wait for all ranks. When one fails, end the others; the exit code is that of the first to fail."""
    first_failure, deadline = 0, float("inf")
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            if time.monotonic() > deadline:
                for child in children:
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
            continue
        rank, code = children.pop(pid), os.waitstatus_to_exitcode(status)
        if code != 0 and first_failure == 0:
            first_failure = code if code > 0 else Exit.WORKER_DIED
            deadline = time.monotonic() + GRACE_SECONDS
            if not folder.error_file(rank).exists():
                _speak_for(rank, code, folder)
    return first_failure


def _speak_for(rank: int, code: int, folder: RunFolder) -> None:
    """Write the failure of a rank that could not do so itself."""
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} and no error"
    failure = {
        "rank": rank,
        "exit_code": int(Exit.WORKER_DIED),
        "type": "RankEnded",
        "message": f"rank {rank} was {how}",
        "hint": f"what it printed is in {folder.log_file(rank)}",
        "phase": None,
        "step": None,
        "traceback": "",
    }
    folder.write(f"errors/r{rank:03d}.json", failure)


if __name__ == "__main__":
    main()
