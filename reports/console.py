"""The console that everything is printed on: a reader that leaves (`| head`) ends the printing, never the run."""

from __future__ import annotations

import contextlib
import os
from typing import IO, Any

import rich.console


class Console(rich.console.Console):
    """rich's console, with a way of its own to meet a closed pipe; rich's would end the process."""

    def __init__(self, file: IO[str] | None = None, **options: Any) -> None:
        super().__init__(file=file, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        hush(self.file)


def hush(stream: IO[str]) -> None:
    """Send what is still written to `stream` nowhere: nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
