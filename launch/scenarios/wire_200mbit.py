"""Two hosts on a wire that takes 200 Mbit a second."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from ._contract import Planted, Scenario, subject
from ._wire import ADDRESSES, two_hosts, why_not

MEGABITS = 200
PORT = 29517


def _with(layers: float, megabits: float | None) -> Planted:
    model = subject(width=256, inner=512, tokens=64, layers=round(layers))
    options = {**model, "micro_batch": 4, "gpus": 1, "rendezvous": f"{ADDRESSES[0]}:{PORT}"}
    return Planted(options=options, around=lambda: _hosts(megabits))


@contextlib.contextmanager
def _hosts(megabits: float | None) -> Iterator[Sequence[Sequence[str]]]:
    """Each with a core of its own: hosts do not take each other's time."""
    cores = sorted(os.sched_getaffinity(0))
    with two_hosts(megabits) as prefixes:
        yield [(*prefix, "taskset", "-c", str(cores[host % len(cores)])) for host, prefix in enumerate(prefixes)]


scenario = Scenario(
    name="wire_200mbit",
    says="two hosts on a wire that takes 200 Mbit a second",
    label="comm_bandwidth",
    plant=lambda strength, world_size: _with(strength, MEGABITS),
    remove=lambda strength, world_size: _with(strength, None),
    strengths=(4, 8),
    whole=round,
    unit="layers of 1 MiB",
    why_not=why_not,
)
