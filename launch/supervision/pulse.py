"""Where each rank is: readable from outside at any time, also when the rank is dead, stopped or stuck. No torch.

`live/r000` in the run folder holds JSON blocks of fixed size at fixed places, each replaced by one `pwrite` of its only
writer: the rank's main thread (place, news), its pulse thread (beat), whoever started it (end).
The folder is removed when the run has ended.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from ..environment import started

BEAT_SECONDS = 0.5
BLOCK_BYTES = 512
PLACE, BEAT, NEWS, END = (index * BLOCK_BYTES for index in range(4))
# Behind them, in a file that has been given its size: what ended the rank, when nothing else can be written.
LAST_WORDS, LAST_WORDS_BYTES = 4 * BLOCK_BYTES, 4096
# States in which a rank has nothing left to do.
FINAL = ("finished", "stopped", "failed")
# Steps of which the 99th percentile is taken; events between steps do not count.
RECENT_STEPS = 100
EVENTS = ("checkpoint", "evaluation")


def pulse_file(folder: Path, rank: int) -> Path:
    """The file of `rank` in the run folder `folder`."""
    return folder / "live" / f"r{rank:03d}"


def watched_ranks(folder: Path) -> list[int]:
    """The ranks that have a pulse file in the run folder `folder`."""
    return sorted(int(path.name[1:]) for path in (folder / "live").glob("r*") if path.name[1:].isdigit())


def stack_file(folder: Path, rank: int) -> Path:
    """Where `rank` writes its stack when it is asked to."""
    return folder / "live" / f"r{rank:03d}.stack"


def dump_request(folder: Path) -> Path:
    """The file whose presence asks every rank for its list of collectives."""
    return folder / "live" / "dump"


class Pulse:
    """The rank's end. Writing costs about a microsecond; a file that cannot be written never stops the training."""

    def __init__(self, folder: Path, rank: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.step: int | None = None
        self.phase: str = "starting"
        self._descriptor = os.open(pulse_file(folder, rank), os.O_RDWR | os.O_CREAT, 0o644)
        self._request = dump_request(folder)
        self._clock = clock
        # A pid can be used again: with its start it names this process alone.
        # Of multiprocessing's temporary folder a killed process leaves behind what the supervisor then removes.
        self._process = {
            "pid": os.getpid(),
            "started": started(os.getpid()),
            "temporary": _own_temporary_folder(),
        }
        self._began: float | None = None
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._interrupted = False
        self._closing = threading.Event()
        self.at(None, "starting")

    def at(self, step: int | None, phase: str | None) -> None:
        """The rank begins `phase` (of `step`)."""
        now = self._clock()
        if step != self.step:
            if self._began is not None and not self._interrupted:
                self._recent.append(now - self._began)
            self._began = now if step is not None else None
            self._interrupted = False
        self._interrupted |= phase in EVENTS
        self.step, self.phase = step, phase or self.phase
        self._put(PLACE, {**self._process, "step": step, "phase": self.phase, "since": now})

    def patient(self) -> None:
        """What comes now may take its time: it is no step."""
        self._put(
            PLACE, {**self._process, "step": self.step, "phase": self.phase, "since": self._clock(), "patient": True}
        )

    def end(self, state: str, code: int = 0) -> None:
        """The rank has come to its end: one of `FINAL`, with the exit code that the run should have."""
        now = self._clock()
        self._put(
            PLACE,
            {**self._process, "step": self.step, "phase": self.phase, "since": now, "state": state, "code": code},
        )

    def median_seconds(self) -> float:
        """Of the last steps; 0 before there are any."""
        return statistics.median(self._recent) if self._recent else 0.0

    def news(self, **figures: Any) -> None:
        """Figures of the step just done, for the display."""
        self._put(NEWS, figures)

    def last_words(self, error: dict[str, Any]) -> None:
        """What ended this rank, for a disk that takes no new file. Long texts are cut."""
        short = {name: value[:400] if isinstance(value, str) else value for name, value in error.items()}
        _put(self._descriptor, LAST_WORDS, short, LAST_WORDS_BYTES)

    def beat(self) -> None:
        """One beat: shows that this process runs its threads, and how long its steps take."""
        recent = sorted(self._recent)
        p99 = recent[-(-99 * len(recent) // 100) - 1] if recent else None
        self._put(BEAT, {"at": self._clock(), "p99": p99, "steps": len(recent)})

    def start_beating(self, dump: Callable[[], None]) -> None:
        """Beat in a thread until closed; calls `dump` once when the supervisor asks for it."""

        def run() -> None:
            asked = False
            while not self._closing.wait(BEAT_SECONDS):
                self.beat()
                if not asked and self._request.exists():
                    asked = True
                    dump()

        self.beat()
        threading.Thread(target=run, name="pulse", daemon=True).start()

    def close(self) -> None:
        self._closing.set()

    def _put(self, place: int, values: dict[str, Any]) -> None:
        _put(self._descriptor, place, values)


def _put(descriptor: int, place: int, values: dict[str, Any], size: int = BLOCK_BYTES) -> None:
    content = orjson.dumps(values).ljust(size)
    if len(content) == size:
        try:
            os.pwrite(descriptor, content, place)
        except OSError:  # a full disk, say: the records will tell
            return


def _own_temporary_folder() -> str | None:
    """multiprocessing's temporary folder of this process, made now; None where it has one of its parent's."""
    inherited = multiprocessing.current_process()._config.get("tempdir")  # pyright: ignore[reportAttributeAccessIssue]
    return None if inherited else multiprocessing.util.get_temp_dir()


def record_end(folder: Path, rank: int, code: int) -> None:
    """For whoever started `rank`: it ended with exit code `code`, negative for the signal that killed it."""
    descriptor = os.open(pulse_file(folder, rank), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _put(descriptor, END, {"code": code, "at": time.monotonic()})
    finally:
        os.close(descriptor)


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
    place, beat, news, end = (_block(raw, offset) for offset in (PLACE, BEAT, NEWS, END))
    pid = place.get("pid")
    return Sighting(
        rank=rank,
        pid=pid,
        phase=place.get("phase", "starting"),
        step=place.get("step"),
        since=place.get("since"),
        state=place.get("state"),
        code=place.get("code", 0),
        beat_at=beat.get("at"),
        p99_seconds=beat.get("p99"),
        steps=beat.get("steps", 0),
        end_code=end.get("code"),
        ended_at=end.get("at"),
        process=_process_state(pid, place.get("started")),
        news=news or None,
        patient=place.get("patient", False),
        temporary=place.get("temporary"),
        last_words=_block(raw, LAST_WORDS, LAST_WORDS_BYTES) or None,
    )


def prepare(folder: Path, rank: int) -> None:
    """Make the pulse file of `rank`, at its full size: later writes need no more room on the disk."""
    pulse_file(folder, rank).write_bytes(b" " * (LAST_WORDS + LAST_WORDS_BYTES))


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
