"""A rank as seen from outside: what its pulse file and the kernel say of it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from ..environment import started
from .pulse import (
    BEAT,
    BLOCK_BYTES,
    END,
    HERE,
    LAST_WORDS,
    LAST_WORDS_BYTES,
    NEWS,
    NO_STEP,
    PLACE,
    SELF,
    pulse_file,
)


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A rank as seen from outside at one moment. Times are of the host's monotonic clock, in seconds."""

    rank: int
    pid: int | None = None
    phase: str = "starting"
    step: int | None = None
    since: float | None = None
    state: str | None = None
    """One of `FINAL`, once the rank has said so."""
    code: int = 0
    beat_at: float | None = None
    p99_seconds: float | None = None
    steps: int = 0
    end_code: int | None = None
    """The exit code as whoever started the rank found it."""
    ended_at: float | None = None
    process: str | None = None
    """psutil's word for the process's state; None when there is none, or none yet."""
    news: dict[str, Any] | None = None
    patient: bool = False
    """Whether the rank is at something that may take long."""
    temporary: str | None = None
    """Its temporary folder, to be removed when it has ended."""
    last_words: dict[str, Any] | None = None
    """The error that ended the rank, where it could not write a file of its own."""

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        return self.end_code is not None or (self.pid is not None and self.process in (None, psutil.STATUS_ZOMBIE))


def see(folder: Path, rank: int) -> Sighting:
    """`rank` as its pulse file and the kernel show it now."""
    try:
        raw = pulse_file(folder, rank).read_bytes()
    except OSError:
        return Sighting(rank=rank)
    itself, beat, news, end = (_block(raw, offset) for offset in (SELF, BEAT, NEWS, END))
    pid = itself.get("pid")
    since, step, phase = _place(raw, itself.get("phases", []))
    return Sighting(
        rank=rank,
        pid=pid,
        phase=phase,
        step=step,
        since=since,
        state=itself.get("state"),
        code=itself.get("code", 0),
        beat_at=beat.get("at"),
        p99_seconds=beat.get("p99"),
        steps=beat.get("steps", 0),
        end_code=end.get("code"),
        ended_at=end.get("at"),
        process=_process_state(pid, itself.get("started")),
        news=news or None,
        patient=itself.get("patient", False),
        temporary=itself.get("temporary"),
        last_words=_block(raw, LAST_WORDS, LAST_WORDS_BYTES) or None,
    )


def _place(raw: bytes, names: list[str]) -> tuple[float | None, int | None, str]:
    """Since when, step and phase, of a file's bytes."""
    here = raw[PLACE : PLACE + HERE.size]
    if len(here) < HERE.size or not names:
        return None, None, "starting"
    since, where = HERE.unpack(here)
    step, number = divmod(where, 256)
    return since, None if step == NO_STEP else step, names[number] if number < len(names) else "unknown"


def _block(raw: bytes, place: int, size: int = BLOCK_BYTES) -> dict[str, Any]:
    content = raw[place : place + size].strip(b" \0")
    try:
        return orjson.loads(content) if content else {}
    except orjson.JSONDecodeError:  # met in the middle of a write: the next look sees it whole
        return {}


def _process_state(pid: int | None, began: float | None) -> str | None:
    if pid is None:
        return None
    try:
        return psutil.Process(pid).status() if started(pid) == began else None
    except psutil.Error:
        return None
