"""Two hosts on one machine: network namespaces joined by a veth pair, as root and with iproute2."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence

import pytest
from scalelab.launch.scenarios._wire import ADDRESSES, why_not
from scalelab.launch.scenarios._wire import two_hosts as wired

__all__ = ["ADDRESSES", "cut", "limit", "on", "two_hosts", "why_not"]


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """The names of two namespaces whose addresses are `ADDRESSES`; skips by name where there can be none."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with wired(None) as ((*_, first), (*_, second)):
        yield first, second


def limit(names: Sequence[str], megabits: int) -> None:
    """Let the wire take `megabits` (10^6 bits) a second in each direction."""
    for index, name in enumerate(names):
        command = ["tc", "qdisc", "add", "dev", f"wire{index}", "root", "tbf", "rate", f"{megabits}mbit"]
        subprocess.run(on(name, [*command, "burst", "64kb", "latency", "50ms"]), check=True, capture_output=True)


def cut(name: str, index: int) -> None:
    """Cut the wire, without a word to anybody."""
    _ip("-n", name, "link", "set", f"wire{index}", "down")


def on(name: str, command: Sequence[str]) -> list[str]:
    """`command`, to be run on host `name`."""
    return ["ip", "netns", "exec", name, *command]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
