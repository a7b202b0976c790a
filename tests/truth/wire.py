"""Two hosts on a wire of known width: network namespaces joined by a veth pair, shaped to 200 Mbit.

As a program: one rank of it, in its namespace. `python -m tests.truth.wire FOLDER STRATEGY RANK PORT`
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scalelab.launch.loop import train
from scalelab.launch.ranks import Rank, join_ranks
from scalelab.launch.schedule import Step
from scalelab.launch.strategies._contract import Sharded
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.capture import group
from scalelab.profiles.capture.block import BlockTimer
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.runfolder import RunFolder
from torch import distributed

from tests.support import ranks
from tests.support.hosts import ADDRESSES, on
from tests.truth.training import new_folder, train_planted

MEGABITS = 200
WIDTH = 256
STEPS = 30
BLOCK_STEPS = 12
DROPPED = 2
STREAM_BYTES = 50_000_000
PORT = 29531
HEADER_BYTES = 14 + 20 + 32


def measure(
    place: Path, names: tuple[str, str], strategy: str, port: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of a run of two ranks, one on each host, and what each rank saw besides."""
    folder = new_folder(place, strategy, 2)
    processes = [
        subprocess.Popen(
            on(name, [sys.executable, "-m", "tests.truth.wire", str(folder.path), strategy, str(rank), str(port)]),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, name in enumerate(names)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return summarise(load_run(folder)), [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> None:
    path, strategy, number, port = sys.argv[1:]
    index = int(number)
    rank = Rank(rank=index, local_rank=0, world_size=2, local_world_size=1)
    os.environ.update(rank.environment(ADDRESSES[0], int(port)))
    os.environ["GLOO_SOCKET_IFNAME"] = f"wire{index}"
    found: dict[str, Any] = {"bytes_per_second": [stream(index, int(port) + 1)]}
    join_ranks(rank, "cpu", ranks.recorder)

    def before() -> None:
        distributed.barrier()
        found["sent_bytes"] = -sent(index)

    def after(run: Sharded, batches: Iterator[Any], probe: Probe) -> None:
        found["sent_bytes"] += sent(index)
        found.update(headroom(run, batches, probe))

    train_planted(rank, strategy, STEPS, (), 1, path, WIDTH, before, after)
    found["payload"] = payload(RunFolder(Path(path)), index)
    distributed.barrier()
    found["bytes_per_second"].append(stream(index, int(port) + 2))
    print(json.dumps(found))


def headroom(run: Sharded, batches: Iterator[Any], probe: Probe) -> dict[str, float]:
    """What a step saves on a free wire: blocks with and without, A B B A twice. And what blocking costs besides its own
    time: on the free wire, with a sleep in every collective in place of the wait, a step takes longer than they last,
    as caches are cold afterwards."""
    kinds = ("wire", "free", "free", "wire", "free", "sleep", "sleep", "free")
    means: dict[str, list[float]] = {kind: [] for kind in kinds}
    slept: list[float] = []
    pause = 0.0
    for kind in kinds * 2:
        steps = [Step(index=10_000, role="counterfactual", lr=0.0, samples=3) for _ in range(BLOCK_STEPS)]
        timer = BlockTimer(probe, probe._timeline)
        distributed.barrier()
        ranks.recorder.free = kind != "wire"
        with sleeping(pause if kind == "sleep" else None, slept):
            train(run, batches, steps, timer, lambda batch: batch)
        ranks.recorder.free = False
        means[kind].append(float(np.mean(timer.seconds()[DROPPED:])))
        if kind == "free" and not pause:
            pause = (means["wire"][0] - means["free"][0]) / calls(run, batches, probe)
    mean = {kind: float(np.mean(values)) for kind, values in means.items()}
    per_step = sum(slept) / (len(means["sleep"]) * BLOCK_STEPS)
    return {
        "headroom_seconds": mean["wire"] - mean["free"],
        "cold_seconds": mean["sleep"] - mean["free"] - per_step,
    }


def calls(run: Sharded, batches: Iterator[Any], probe: Probe) -> int:
    """Collectives of a step."""
    slept: list[float] = []
    ranks.recorder.free = True
    with sleeping(0.0, slept):
        train(run, batches, [Step(index=10_000, role="counterfactual", lr=0.0, samples=3)], probe, lambda batch: batch)
    ranks.recorder.free = False
    return len(slept)


@contextlib.contextmanager
def sleeping(seconds: float | None, slept: list[float]) -> Iterator[None]:
    """Each collective on a free wire sleeps that long; how long it did is added to `slept`."""
    done = group._done

    def late(result: Any) -> Any:
        begin = time.perf_counter()
        time.sleep(seconds or 0.0)
        slept.append(time.perf_counter() - begin)
        return done(result)

    if seconds is not None:
        group._done = late
    try:
        yield
    finally:
        group._done = done


def payload(folder: RunFolder, rank: int) -> float:
    """Wire bytes of all training steps by the formula, from the records."""
    from scalelab.profiles.analysis.wire import wire_factor

    run = load_run(folder)
    mine = next(each for each in run.ranks if each.rank == rank)
    total = 0.0
    for number in mine.steps.comm.plan.tolist():
        for collective in mine.comm_plans[number]:
            total += collective.payload_bytes * (wire_factor(collective.kind, 2, "cpu") or 0.0)
    return total


def sent(index: int) -> int:
    """Bytes that this host's interface has sent, without the headers of Ethernet, IP and TCP (with its time stamps)."""
    count, packets = (
        int(Path(f"/sys/class/net/wire{index}/statistics/{name}").read_text()) for name in ("tx_bytes", "tx_packets")
    )
    return count - HEADER_BYTES * packets


def stream(index: int, port: int) -> float:
    """Bytes a second of a plain TCP stream over the wire, from host 0 to host 1, as host 1 receives them."""
    if index == 0:
        with socket.create_server((ADDRESSES[0], port)) as server:
            connection, _ = server.accept()
            with connection:
                connection.sendall(bytes(STREAM_BYTES))
                return float(connection.recv(64).decode())
    while True:
        try:
            connection = socket.create_connection((ADDRESSES[0], port), timeout=60)
            break
        except OSError:
            time.sleep(0.1)
    with connection:
        left, first = STREAM_BYTES, 0.0
        while left:
            left -= len(connection.recv(1 << 20))
            first = first or time.perf_counter()
        rate = STREAM_BYTES / (time.perf_counter() - first)
        connection.sendall(f"{rate:.0f}".encode().ljust(64))
        return rate


if __name__ == "__main__":
    main()
