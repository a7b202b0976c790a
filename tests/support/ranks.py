"""Real ranks over gloo for tests: forked from one server that has imported torch and DeepSpeed once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from scalelab.launch.ranks import LISTENER_VARIABLE, Rank, join_ranks, listen_on_free_port
from scalelab.profiles.capture.comm import CommRecorder

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.support.preloaded"])
TIMEOUT_SECONDS = 120
recorder = CommRecorder()
"""What a rank's collectives go through, as in a run. It keeps those between its `open` and its `close`."""


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """What `function(rank, *args)` returns on each of `world_size` ranks, within a process group on CPU.

    `function` is a module's own, its arguments and results can be pickled. Raises AssertionError with every
    rank's traceback when one fails.
    """
    listener = listen_on_free_port()
    port = listener.getsockname()[1]
    processes, ends = [], []
    for index in range(world_size):
        rank = Rank(rank=index, local_rank=index, world_size=world_size, local_world_size=world_size)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_main, args=(rank, port, listener, theirs, function, args), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        ends.append(ours)
    listener.close()
    results = [_receive(end) for end in ends]
    for process in processes:
        process.join(timeout=10)
        process.kill()
    failures = [text for ok, text in results if not ok]
    assert not failures, "\n\n".join(failures)
    return [value for _, value in results]


def _receive(end: Connection) -> tuple[bool, Any]:
    try:
        return end.recv() if end.poll(TIMEOUT_SECONDS) else (False, f"no result within {TIMEOUT_SECONDS} s")
    except EOFError:
        return False, "the rank ended without a result"


def _main(
    rank: Rank,
    port: int,
    listener: socket.socket,
    end: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    os.environ.update(rank.environment("127.0.0.1", port))
    os.environ[LISTENER_VARIABLE] = str(listener.fileno())
    # PyTorch's flight recorder keeps this many collectives, all of which each look of tests/support/witness.py lists.
    os.environ["TORCH_FR_BUFFER_SIZE"] = "400"
    try:
        join_ranks(rank, "cpu", recorder)
        result = function(rank, *args)
        distributed.destroy_process_group()
        end.send((True, result))
    except BaseException:
        end.send((False, f"rank {rank.rank}:\n{traceback.format_exc()}"))
