"""Starts CPU ranks by forking one process that has imported everything: eight ranks start as fast as one.

`python -m scalelab.launch.supervision.forker RUN_FOLDER`. torchrun would import torch once in its agent and once in
each rank, which on a few cores is most of a short run. Each rank sees the environment variables that torchrun sets.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ...profiles.runfolder import RunFolder
from ..config import RunConfig
from ..ranks import LISTENER_VARIABLE, Rank, first_rank, listen_on_free_port, store_of_hosts
from ..setting import Setting
from .parent import die_with_parent, given_parent, leave_signals_to_ranks
from .pulse import record_end


def main() -> None:
    die_with_parent(given_parent())
    folder = RunFolder(Path(sys.argv[1]))
    run_json = folder.read("run.json")
    config, setting = RunConfig(**run_json["config"]), Setting(**run_json["setting"])
    # Read by OpenMP when torch is imported.
    os.environ["OMP_NUM_THREADS"] = str(run_json["threads_per_rank"])
    from .. import strategies

    strategies.load(config.strategy).preload(setting)
    sys.exit(fork_ranks(folder, setting, config.gpus or setting.world_size))


def fork_ranks(folder: RunFolder, setting: Setting, gpus: int) -> int:
    """Fork the `gpus` ranks of this host and write their ends down as they come; 0 when all exited with 0."""
    from .. import worker

    leave_signals_to_ranks()
    forker, listener, store = os.getpid(), None, store_of_hosts()
    if store is None:
        listener = listen_on_free_port()
        store = ("127.0.0.1", listener.getsockname()[1])
        os.environ[LISTENER_VARIABLE] = str(listener.fileno())
    children: dict[int, int] = {}
    for index in range(gpus):
        rank = Rank(rank=first_rank() + index, local_rank=index, world_size=setting.world_size, local_world_size=gpus)
        pid = os.fork()
        if pid == 0:
            die_with_parent(forker)
            os.environ.update(rank.environment(*store))
            worker.redirect_output(folder.log_file(rank.rank))
            worker.leave(worker.run_rank(folder, rank))
        children[pid] = rank.rank
    if listener is not None:
        listener.close()
    failed = 0
    while children:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        record_end(folder.path, children.pop(pid), code)
        failed |= code != 0
    return int(failed)


if __name__ == "__main__":
    main()
