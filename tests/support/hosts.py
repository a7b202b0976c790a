"""Two hosts on one machine: network namespaces joined by a veth pair, as root and with iproute2."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

import pytest

ADDRESSES = ("10.211.7.1", "10.211.7.2")


def why_not() -> str | None:
    """Why namespaces cannot be had here; None if they can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if shutil.which("ip") is None:
        return "needs ip (iproute2)"
    made = subprocess.run(["ip", "netns", "add", f"probe-{os.getpid()}"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    _ip("netns", "del", f"probe-{os.getpid()}")
    return None


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """The names of two namespaces whose addresses are `ADDRESSES`; skips by name where there can be none."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    names = (f"lab-a-{os.getpid()}", f"lab-b-{os.getpid()}")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "wire0", "netns", names[0], "type", "veth", "peer", "name", "wire1", "netns", names[1])
        for index, name in enumerate(names):
            _ip("-n", name, "addr", "add", f"{ADDRESSES[index]}/24", "dev", f"wire{index}")
            _ip("-n", name, "link", "set", f"wire{index}", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


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
