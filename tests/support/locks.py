"""Locks as other processes and other file systems leave them."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest
from scalelab.launch import lock
from scalelab.launch.lock import Holder


def stale(**changes: Any) -> Holder:
    """A holder of this host that is no more."""
    return Holder.ourselves().model_copy(update={"pid": 2**22 + 1, **changes})


def write(folder: Path, content: Holder) -> None:
    (folder / lock.NAME).write_text(content.model_dump_json())


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
