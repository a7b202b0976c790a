"""Rates of this machine, measured by the processes that `ranks.py` starts. Run as a module, once for each rank."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import distributed

from ...profiles.calibration import Spread
from ..ranks import Rank, join_ranks
from ..supervision.parent import die_with_parent

# How often a rate is measured at least, and at most.
LEAST, MOST = 5, 400
# Square matrices to multiply, by device, the larger ones only where a product takes less than this.
SIZES = {"cpu": (256, 1024), "cuda": (2048, 8192)}
LONG_SECONDS = 0.01
# float32 elements of the whole tensor: 4 KiB to 64 MiB.
ELEMENTS = tuple(1024 * 4**power for power in range(8))
# What is sent is counted over so many calls with so many float32 elements (4 MiB, beside which the barriers' and the
# store's bytes are nothing).
WIRE_ELEMENTS, WIRE_CALLS = 1 << 20, 10
# Where `struct tcp_info` (linux/tcp.h) has tcpi_bytes_sent, since Linux 4.19.
TCP_BYTES_SENT = slice(200, 208)
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _repeated(
    act: Callable[[], object], seconds: float, device: torch.device, agree: Callable[[int], int] = lambda count: count
) -> list[float]:
    """Seconds of each call of `act`, for about `seconds` in all, after two calls that do not count; `agree` makes their
    number the same on all ranks."""

    def timed() -> float:
        begin = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    timed()
    count = agree(min(MOST, max(LEAST, round(seconds / max(timed(), 1e-6)))))
    return [timed() for _ in range(count)]


def _join(device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    """The sum of the ranks' numbers."""
    total = torch.tensor(float(distributed.get_rank()), device=device)
    distributed.all_reduce(total)
    return {"sum": total.item()}


def _alone(device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    """Matrix products by dtype and copies, on one device: floating-point operations and bytes in a second."""
    torch.set_num_threads(options["threads"])
    found: dict[str, Any] = {"matmul": {}}
    for name in options["dtypes"]:
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        rates: list[float] = []
        for size in SIZES[device.type]:
            a, b = (torch.randn(size, size, device=device).to(DTYPES[name]) for _ in range(2))
            times = _repeated(lambda a=a, b=b: a @ b, options["seconds"], device)
            rates = [2 * size**3 / each for each in times]
            if min(times) > LONG_SECONDS:
                break  # a larger one would tell no more
        found["matmul"][name] = Spread.of(rates).model_dump()
    torch.backends.cuda.matmul.allow_tf32 = False
    count = (1 << 28) if device.type == "cuda" else (1 << 25)
    source, target = torch.zeros(count, device=device), torch.zeros(count, device=device)
    moved = 2 * source.nbytes  # read and written
    rates = [moved / each for each in _repeated(lambda: target.copy_(source), options["seconds"], device)]
    found["memory"] = Spread.of(rates).model_dump()
    if device.type == "cuda":
        host = torch.zeros(1 << 26, pin_memory=True)
        there = target[: host.numel()]
        for name, act in (
            ("host_to_device", lambda: there.copy_(host, non_blocking=True)),
            ("device_to_host", lambda: host.copy_(there, non_blocking=True)),
        ):
            found[name] = Spread.of(
                [host.nbytes / each for each in _repeated(act, options["seconds"], device)]
            ).model_dump()
    return found


def _collectives(device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each collective by the bytes of its whole tensor, and what gloo sent for a byte of it."""
    torch.set_num_threads(1)
    world = distributed.get_world_size()

    def agreed(count: int) -> int:
        number = torch.tensor(count, device=device)
        distributed.broadcast(number, 0)
        return int(number)

    timings: dict[str, list[dict[str, Any]]] = {}
    for elements in ELEMENTS:
        kinds, payload_bytes = _kinds(elements, world, device)
        for kind, act in kinds.items():
            distributed.barrier()
            seconds = _repeated(act, options["seconds"], device, agreed)
            # A collective has taken as long as it took the slowest rank: a broadcast's root is done much earlier.
            slowest = torch.tensor(seconds, dtype=torch.float64, device=device)
            distributed.all_reduce(slowest, distributed.ReduceOp.MAX)
            spread = Spread.of(slowest.tolist()).model_dump()
            timings.setdefault(kind, []).append({"payload_bytes": payload_bytes, "seconds": spread})
    return {"seconds": timings, "wire_factor": _wire_factors(device, world) if device.type == "cpu" else None}


def _wire_factors(device: torch.device, world: int) -> dict[str, float] | None:
    """Bytes that a rank sends, in the mean, per byte of a collective's payload; None where they are not counted."""
    kinds, payload_bytes = _kinds(WIRE_ELEMENTS, world, device)
    factors: dict[str, float] = {}
    for kind, act in kinds.items():
        act()
        distributed.barrier()
        before = _sent_bytes()
        for _ in range(WIRE_CALLS):
            act()
        distributed.barrier()
        sent = torch.tensor(_sent_bytes() - before, dtype=torch.float64, device=device)
        distributed.all_reduce(sent)
        factors[kind] = float(sent) / (world * payload_bytes * WIRE_CALLS)
    return factors if all(factor > 0 for factor in factors.values()) else None


def _kinds(elements: int, world: int, device: torch.device) -> tuple[dict[str, Callable[[], object]], int]:
    """Each collective over a float32 tensor of about so many elements, and that tensor's bytes."""
    elements = -(-elements // world) * world
    whole, part = torch.ones(elements, device=device), torch.ones(elements // world, device=device)
    other = torch.ones_like(whole)
    kinds: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: distributed.all_reduce(other),
        "all_gather": lambda: distributed.all_gather_into_tensor(whole, part),
        "reduce_scatter": lambda: distributed.reduce_scatter_tensor(part, whole),
        "broadcast": lambda: distributed.broadcast(whole, 0),
        "all_to_all": lambda: distributed.all_to_all_single(other, whole),
    }
    return kinds, whole.nbytes


def _sent_bytes() -> int:
    """Bytes that the TCP connections of this process have sent: an interface's counter would also hold other
    processes'. 0 where the kernel does not count them."""
    total = 0
    for name in os.listdir("/proc/self/fd") if sys.platform == "linux" else ():
        try:
            with socket.socket(fileno=os.dup(int(name))) as one:
                told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_BYTES_SENT.stop)
        except OSError:  # no socket, or none of TCP
            continue
        if len(told) == TCP_BYTES_SENT.stop:
            total += int.from_bytes(told[TCP_BYTES_SENT], sys.byteorder)
    return total


ON_RANKS = {"join": _join, "alone": _alone, "collectives": _collectives}


def main() -> None:
    """This rank's part of the measurement that the arguments name; rank 0 leaves what it found in the folder."""
    what, device_kind, folder, options = sys.argv[1:5]
    die_with_parent()
    begin = time.perf_counter()
    rank = Rank.from_environment(int(os.environ["WORLD_SIZE"]))
    try:
        device = join_ranks(rank, device_kind)
        found = ON_RANKS[what](device, orjson.loads(options))
        distributed.barrier()
    except Exception as error:
        said = {"at": time.monotonic(), "error": f"{type(error).__name__}: {str(error).strip()[:500]}"}
        (Path(folder) / f"error-{rank.rank}.json").write_bytes(orjson.dumps(said))
        raise
    if rank.rank == 0:
        found["seconds" if what == "join" else "took_seconds"] = time.perf_counter() - begin
        (Path(folder) / "found.json").write_bytes(orjson.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
