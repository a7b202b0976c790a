"""Two hosts on one machine: network namespaces joined by a wire of a given width. As root and with iproute2."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence

ADDRESSES = ("10.211.9.1", "10.211.9.2")


def why_not() -> str | None:
    """Why namespaces cannot be had here; None if they can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if missing := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        return f"needs {' and '.join(missing)} (iproute2)"
    name = f"scalelab-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


@contextlib.contextmanager
def two_hosts(megabits: float | None) -> Iterator[Sequence[Sequence[str]]]:
    """What puts a command on each of two hosts, whose wire takes `megabits` (10^6 bits) a second each way; None is as
    fast as it goes."""
    names = [f"scalelab-{os.getpid()}-{index}" for index in range(2)]
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        _run(
            "ip", "link", "add", "wire0", "netns", names[0], "type", "veth", "peer", "name", "wire1", "netns", names[1]
        )
        for index, name in enumerate(names):
            wire = f"wire{index}"
            _run("ip", "-n", name, "addr", "add", f"{ADDRESSES[index]}/24", "dev", wire)
            _run("ip", "-n", name, "link", "set", wire, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            if megabits is not None:
                rate = ("rate", f"{megabits:.0f}mbit", "burst", "64kb", "latency", "50ms")
                _run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", wire, "root", "tbf", *rate)
        yield [("ip", "netns", "exec", name) for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
