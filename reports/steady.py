"""Streams whose reader may leave (`| head`, a closed terminal), which ends nothing else."""

from __future__ import annotations

import contextlib
import os
from typing import IO, Any


class Steady:
    """A text stream whose reader may leave: what is then still written goes nowhere."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:  # a closed pipe, or EIO from a terminal that is gone
            hush(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            hush(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def hush(stream: IO[str]) -> None:
    """Send what is still written to `stream` nowhere: nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
