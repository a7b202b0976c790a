"""How far the monotonic clocks of a run's hosts are apart, by ping-pongs with rank 0's host.

Of several rounds the one with the shortest round trip counts: the other clock was read somewhere within it, so that the
middle is wrong by at most its half (Cristian 1989, "Probabilistic clock synchronization").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed

from ..records import ClockRecord

ROUNDS = 30

# Sends and receives a number to and from a rank.
Send = Callable[[int, int], None]
Receive = Callable[[int], int]


def compare_clocks(
    rank: int,
    boot_ids: Sequence[str],
    send: Send,
    receive: Receive,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> ClockRecord | None:
    """Called on all ranks together. The first rank of each other host gets its host's reading, the rest None."""
    first = {boot: boot_ids.index(boot) for boot in boot_ids}
    del first[boot_ids[0]]
    if rank == 0:
        for other in first.values():
            for _ in range(ROUNDS):
                receive(other)
                send(clock(), other)
        return None
    if rank not in first.values():
        return None
    best: tuple[int, int, int] | None = None
    for _ in range(ROUNDS):
        began = clock()
        send(0, 0)
        there = receive(0)
        ended = clock()
        if best is None or ended - began < best[0]:
            middle = (began + ended) // 2
            best = (ended - began, middle, there - middle)
    assert best is not None
    return ClockRecord(at_ns=best[1], offset_ns=best[2], residual_ns=(best[0] + 1) // 2)


def over(group: Any) -> tuple[Send, Receive]:
    """Sending and receiving through a gloo group."""

    def send(number: int, to: int) -> None:
        distributed.send(torch.tensor([number]), to, group=group)

    def receive(sender: int) -> int:
        number = torch.zeros(1, dtype=torch.int64)
        distributed.recv(number, sender, group=group)
        return int(number)

    return send, receive
