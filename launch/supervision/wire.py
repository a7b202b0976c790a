"""A connection between the supervisors of two hosts: JSON messages, and files in pieces. No torch, nothing unpickled.

Nobody is asked who he is: whoever reaches the rendezvous port while a run gathers can take part, as with PyTorch's own
store. What comes is bounded, checked, and written to the run folder alone.
"""

from __future__ import annotations

import errno
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from ...profiles.storage import writing

PIECE_BYTES = 1 << 20
MAX_BYTES = 64 << 20
# A write that takes longer means that the other end is gone.
STALL_SECONDS = 30
SENT = re.compile(r"(ranks|errors|logs|traces|telemetry)/[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_FILE, _MESSAGE = b"F", b"M"
_LENGTH = struct.Struct(">I")


class WireError(ConnectionError):
    """The other end is gone, or sent what no supervisor sends."""


class Wire:
    """One end. `heard_at` and `filed_at` are when anything, and when a piece of a file, came last.

    Frames are four bytes of length and as many of content; reading never waits for the rest of one.
    """

    def __init__(self, sock: socket.socket, limit_bytes: int = MAX_BYTES) -> None:
        """Raises OSError when the other end has left already."""
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", STALL_SECONDS, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.name = str(sock.getpeername()[0])
        """The other host: its address until it has said its name."""
        self.here = sock.getsockname()[0]
        self.heard_at = time.monotonic()
        self.filed_at = float("-inf")
        self.limit_bytes = limit_bytes
        """A longer frame is refused: few bytes are taken from somebody who has not yet said who he is."""
        self._socket = sock
        self._received = bytearray()

    def send(self, **message: Any) -> None:
        """Raises WireError when the other end is gone."""
        self._send(_MESSAGE + orjson.dumps(message))

    def send_file(self, folder: Path, name: str) -> None:
        """Send file `name` of `folder`, piece by piece."""
        with (folder / name).open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                self._send(_FILE + name.encode() + b"\0" + piece)

    def receive(self, seconds: float, folder: Path | None = None) -> dict[str, Any] | None:
        """The next message, waited for at most so long; None when none came. Pieces of files go to `folder`.

        Raises WireError when the other end is gone or sends nonsense, OutputError when `folder` cannot be written.
        """
        deadline = time.monotonic() + seconds
        while True:
            for raw in self._frames():
                if raw[:1] == _MESSAGE:
                    return _message(raw[1:])
                self._keep(raw, folder)
            if not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            try:
                content = self._socket.recv(PIECE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise WireError(str(error)) from error
            if not content:
                raise WireError("closed")
            self.heard_at = time.monotonic()
            self._received += content

    def close(self) -> None:
        self._socket.close()

    def _frames(self) -> Iterator[bytes]:
        """Whole frames that have come, each taken off as it is handed out."""
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if length > self.limit_bytes:
                raise WireError(f"a message of {length} bytes")
            if len(self._received) < _LENGTH.size + length:
                return
            raw = bytes(self._received[_LENGTH.size : _LENGTH.size + length])
            del self._received[: _LENGTH.size + length]
            yield raw

    def _send(self, content: bytes) -> None:
        try:
            self._socket.sendall(_LENGTH.pack(len(content)) + content)
        except OSError as error:
            raise WireError(str(error)) from error

    def _keep(self, raw: bytes, folder: Path | None) -> None:
        name, _, piece = raw[1:].partition(b"\0")
        text = name.decode(errors="replace")
        if folder is None or raw[:1] != _FILE or not SENT.fullmatch(text):
            raise WireError(f"a file {text[:100]!r} that nobody asked for")
        self.filed_at = time.monotonic()
        path = folder / text
        with writing(path, len(piece)):
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as file:
                file.write(piece)


def _message(raw: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise WireError(str(error)) from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise WireError("a message of no kind")
    return message


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
