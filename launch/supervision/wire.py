"""A connection between the supervisors of two hosts: JSON messages, and files in pieces. No torch, nothing unpickled.

Nobody is asked who he is: whoever reaches the rendezvous port while a run gathers can take part, as with PyTorch's own
store. What comes is bounded, checked, and written to the run folder alone.
"""

from __future__ import annotations

import errno
import multiprocessing.connection
import re
import socket
import struct
import time
from pathlib import Path
from typing import Any

import orjson

PIECE_BYTES = 1 << 20
MAX_BYTES = 64 << 20
# A write or the rest of a message that takes longer means that the other end is gone.
STALL_SECONDS = 30
SENT = re.compile(r"(ranks|errors|logs|traces)/[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_FILE, _MESSAGE = b"F", b"M"


class WireError(ConnectionError):
    """The other end is gone, or sent what no supervisor sends."""


class Wire:
    """One end. `heard_at` is when anything came last, on the monotonic clock."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        stall = struct.pack("ll", STALL_SECONDS, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, stall)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, stall)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer = sock.getpeername()[0]
        self.here = sock.getsockname()[0]
        self._connection = multiprocessing.connection.Connection(sock.detach())
        self.heard_at = time.monotonic()

    def send(self, **message: Any) -> None:
        """Raises WireError when the other end is gone."""
        self._send(_MESSAGE + orjson.dumps(message))

    def send_file(self, folder: Path, name: str) -> None:
        """Send file `name` of `folder`, piece by piece; what is written to it meanwhile is not sent."""
        with (folder / name).open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                self._send(_FILE + name.encode() + b"\0" + piece)

    def receive(self, seconds: float, folder: Path | None = None) -> dict[str, Any] | None:
        """The next message, waited for at most so long; None when none came. Pieces of files go to `folder`.

        Raises WireError when the other end is gone or sends nonsense.
        """
        deadline = time.monotonic() + seconds
        try:
            while self._connection.poll(max(0.0, deadline - time.monotonic())):
                raw = self._connection.recv_bytes(MAX_BYTES)
                self.heard_at = time.monotonic()
                if raw[:1] == _MESSAGE:
                    message = orjson.loads(raw[1:])
                    if not isinstance(message, dict):
                        raise WireError("a message that is no object")
                    return message
                self._keep(raw, folder)
        except (EOFError, OSError, orjson.JSONDecodeError) as error:
            raise WireError(str(error) or type(error).__name__) from error
        return None

    def close(self) -> None:
        self._connection.close()

    def _send(self, content: bytes) -> None:
        try:
            self._connection.send_bytes(content)
        except OSError as error:
            raise WireError(str(error)) from error

    def _keep(self, raw: bytes, folder: Path | None) -> None:
        name, _, piece = raw[1:].partition(b"\0")
        text = name.decode(errors="replace")
        if folder is None or raw[:1] != _FILE or not SENT.fullmatch(text):
            raise WireError(f"a file {text[:100]!r} that nobody asked for")
        path = folder / text
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.write(piece)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at that address of this host. Raises OSError with a text that says why there is none."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        words = {
            errno.EADDRINUSE: "the port is taken: choose another one, on all hosts",
            errno.EADDRNOTAVAIL: "that is no address of this host, which is --node-rank 0",
        }
        raise OSError(error.errno, words.get(error.errno or 0, error.strerror)) from error


def free_port(host: str) -> int:
    """A port of `host`, an address of this machine, that is free now."""
    with listen(host, 0) as server:
        return server.getsockname()[1]
