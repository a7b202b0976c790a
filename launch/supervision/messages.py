"""What ranks tell the supervisor while they run: small datagrams on a local socket, never waited for.

The socket's path travels in an environment variable. A rank started without a supervisor says nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

SOCKET_VARIABLE = "SCALELAB_SOCKET"
_MAX_BYTES = 60_000


class Sender:
    """A rank's end. A message that finds the socket full or gone is dropped: training never waits for a display."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._address = os.environ.get(SOCKET_VARIABLE)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def __call__(self, **message: Any) -> None:
        if self._address is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(orjson.dumps({"rank": self._rank, **message}), self._address)


class Inbox:
    """The supervisor's end."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "socket"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))

    def receive(self, wait_seconds: float) -> list[dict[str, Any]]:
        """What has come, after waiting at most so long for a first message."""
        messages = []
        self._socket.settimeout(wait_seconds)
        while True:
            try:
                messages.append(orjson.loads(self._socket.recv(_MAX_BYTES)))
            except (TimeoutError, BlockingIOError):
                return messages
            self._socket.settimeout(0)


@contextlib.contextmanager
def open_inbox() -> Iterator[Inbox]:
    """An inbox in a temporary folder of its own, whose short path fits into a socket address."""
    folder = Path(tempfile.mkdtemp(prefix="scalelab-"))
    inbox = Inbox(folder)
    try:
        yield inbox
    finally:
        inbox._socket.close()
        shutil.rmtree(folder, ignore_errors=True)
