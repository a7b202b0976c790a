"""Starts CPU ranks by forking one process that has imported everything: eight ranks start as fast as one.

`python -m scalelab.launch.supervision.forker STRATEGY SETTING`, with the setting in JSON, imports; then it reads from
its standard input what is to be run: `[RUN_FOLDER, RANKS, {ENVIRONMENT}]`. torchrun would import torch once in its
agent and once in each rank, which on a few cores is most of a short run. Each rank sees the environment variables that
torchrun sets.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path

import orjson

from ...profiles.runfolder import RunFolder
from ..errors import Exit
from ..ranks import LISTENER_VARIABLE, Rank, first_rank, listen_on_free_port, store_of_hosts
from ..setting import Setting
from .parent import die_with_parent, given_parent, leave_signals_to_ranks, redirect_output
from .pulse import record_end


def main() -> None:
    die_with_parent(given_parent())
    leave_signals_to_ranks()
    setting, trouble = Setting(**orjson.loads(sys.argv[2])), None
    try:
        from .. import strategies

        strategies.load(sys.argv[1]).preload(setting)
    except Exception:
        trouble = traceback.format_exc()
    # What is there now stays. Neither a rank's collector nor the interpreter's at its end need look through it again.
    gc.collect()
    gc.freeze()
    order = sys.stdin.buffer.read()
    if not order:
        sys.exit(Exit.WORKER_DIED)  # whoever started this one needs no ranks
    path, gpus, environment = orjson.loads(order)
    os.environ.update(environment)
    folder = RunFolder(Path(path))
    _write_to(folder.path / "logs" / "launcher.log")
    if trouble is not None:
        sys.exit(trouble)
    sys.exit(fork_ranks(folder, setting, gpus))


def _write_to(log: Path) -> None:
    """Append to `log` what has been printed so far, and from now on all that is."""
    sys.stdout.flush()
    sys.stderr.flush()
    said = os.pread(1, 1 << 20, 0)
    redirect_output(log)
    os.write(1, said)


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
            redirect_output(folder.log_file(rank.rank))
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
