"""Where each rank is: readable from outside at any time, also when the rank is dead, stopped or stuck. No torch.

`live/r000` in the run folder holds JSON blocks of fixed size at fixed places, each replaced by one `pwrite` of its only
writer: the rank's main thread (who it is, news), its pulse thread (beat), whoever started it (end). Where the rank is,
which changes several times a step, is a few bytes of shared memory in the same file.
The folder is removed when the run has ended.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import multiprocessing.util
import os
import statistics
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from ..environment import file_system, started

BEAT_SECONDS = 0.5
BLOCK_BYTES = 1024
SELF, BEAT, NEWS, END, PLACE = (index * BLOCK_BYTES for index in range(5))
# At PLACE: since when, and 256 times the step (NO_STEP for none) plus the phase's number among the names that SELF has.
HERE = struct.Struct("<dq")
NO_STEP = -1
# File systems that keep a file's place on the disk. On others a write to its memory may ask for new room, or for a
# server, and where there is none the kernel ends the process.
IN_PLACE = frozenset({"ext2", "ext3", "ext4", "tmpfs", "xfs"})
# Behind them, in a file that has been given its size: what ended the rank, when nothing else can be written.
LAST_WORDS, LAST_WORDS_BYTES = 5 * BLOCK_BYTES, 4096
FILE_BYTES = LAST_WORDS + LAST_WORDS_BYTES
# States in which a rank has nothing left to do.
FINAL = ("finished", "stopped", "failed")
# Steps of which the 99th percentile is taken; events between steps do not count.
RECENT_STEPS = 100
EVENTS = ("checkpoint", "evaluation", "profiler")


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
        self._number = -1
        self._descriptor = os.open(pulse_file(folder, rank), os.O_RDWR | os.O_CREAT, 0o644)
        self._page = _shared_page(folder, self._descriptor)
        self._since = memoryview(self._page)[PLACE : PLACE + 8].cast("d")
        self._where = memoryview(self._page)[PLACE + 8 : PLACE + 16].cast("q")
        self._names = {name: number for number, name in enumerate(EVENTS)}
        # Those of them that need no more than to be written down.
        self._plain: dict[str | None, int] = {}
        self._shared = not isinstance(self._page, bytearray)
        self._request = dump_request(folder)
        self._clock = clock
        # A pid can be used again: with its start it names this process alone.
        # Of multiprocessing's temporary folder a killed process leaves behind what the supervisor then removes.
        self._process = {
            "pid": os.getpid(),
            "started": started(os.getpid()),
            "temporary": _own_temporary_folder(),
        }
        self._patient = False
        self._began: float | None = None
        self._of_step = NO_STEP * 256
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._interrupted = False
        self._tail: dict[str, Any] = {}
        self._closing = threading.Event()
        self.at(None, "starting")

    def at(self, step: int | None, phase: str | None) -> None:
        """The rank begins `phase` (of `step`)."""
        # Several times a step, between large operations that leave the caches cold: a line costs 1 us.
        now = self._clock()
        if step != self.step:
            self._step_begins(step, now)
        number = self._plain.get(phase)
        if number is None:
            number = self._uncommon(self.phase if phase is None else phase)
        self._number = number
        self._since[0] = now
        self._where[0] = self._of_step + number
        if not self._shared:
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, self._page[PLACE : PLACE + HERE.size], PLACE)

    @property
    def phase(self) -> str:
        """Where the rank is, or what it was in last."""
        return next((name for name, number in self._names.items() if number == self._number), "starting")

    def _uncommon(self, phase: str) -> int:
        """The number of a phase that outsiders do not know yet, that is an event, or that ends their patience."""
        number = self._names.get(phase)
        if number is None or self._patient:
            number = self._names.setdefault(phase, min(len(self._names), 255))
            self._say()
        if number < len(EVENTS):
            self._interrupted = True
        else:
            self._plain[phase] = number
        return number

    def _step_begins(self, step: int | None, now: float) -> None:
        if self._began is not None and not self._interrupted:
            self._recent.append(now - self._began)
        self._began = now if step is not None else None
        self._interrupted = False
        self.step = step
        self._of_step = (NO_STEP if step is None else step) * 256

    def patient(self) -> None:
        """What comes now may take its time: it is no step."""
        self.at(self.step, None)
        self._say(patient=True)

    def end(self, state: str, code: int = 0) -> None:
        """The rank has come to its end: one of `FINAL`, with the exit code that the run should have."""
        self.at(self.step, None)
        self._say(state=state, code=code)

    def _say(self, *, patient: bool = False, **more: Any) -> None:
        self._patient = patient
        if patient:
            self._plain.clear()
        self._put(SELF, {**self._process, "phases": list(self._names), "patient": patient, **more})

    def median_seconds(self) -> float:
        """Of the last steps; 0 before there are any."""
        return statistics.median(self._recent) if self._recent else 0.0

    def news(self, **figures: Any) -> None:
        """Figures of the step just done, for the display."""
        self._put(NEWS, {**figures, **self._tail})

    def tail(self, done: int, of: int, seconds_left: float) -> None:
        """So many blocks of the counterfactual tail are done, for the display."""
        self._tail = {"tail": {"done": done, "of": of, "seconds_left": seconds_left}}
        self.news(step=self.step or 0, role="counterfactual", seconds=0.0)

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


def _shared_page(path: Path, descriptor: int) -> mmap.mmap | bytearray:
    """The pulse file's memory, where it is safe to write to; else this process's own, which is then written out."""
    with contextlib.suppress(OSError, ValueError):
        if os.fstat(descriptor).st_size >= FILE_BYTES and file_system(path) in IN_PLACE:
            return mmap.mmap(descriptor, FILE_BYTES)
    return bytearray(FILE_BYTES)


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


def prepare(folder: Path, rank: int) -> None:
    """Make the pulse file of `rank`, at its full size: later writes need no more room on the disk."""
    blank = bytearray(b" " * FILE_BYTES)
    blank[PLACE : PLACE + HERE.size] = bytes(HERE.size)
    pulse_file(folder, rank).write_bytes(blank)
