"""Errors that a user can cause or meet, and the exit code that each one ends the process with.

`exit_code_of` is the only place that turns an exception into an exit code.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from ..data.errors import DataError, LoaderDied
from ..models.errors import ModelError
from ..profiles.runfolder import SchemaError
from ..profiles.storage import OutputError
from .supervision.oom_killer import is_out_of_memory


class Exit(enum.IntEnum):
    """Exit codes of every command; scripts rely on them."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    PREFLIGHT = 3
    DATA = 4
    WORKER_DIED = 5
    HANG = 6
    OUT_OF_MEMORY = 7
    NUMERIC = 8
    GATE_FAILED = 9
    SOME_FAILED = 10
    CHECKPOINT = 11
    FOLDER_IN_USE = 12
    PREEMPTED = 75
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """What the code says, in words for a person."""
        return _MEANINGS[self]


_MEANINGS = {
    Exit.OK: "ok",
    Exit.INTERNAL: "internal bug",
    Exit.USAGE: "bad usage or config",
    Exit.PREFLIGHT: "preflight: hardware, port, disk or permissions",
    Exit.DATA: "data",
    Exit.WORKER_DIED: "a worker died",
    Exit.HANG: "hang or timeout",
    Exit.OUT_OF_MEMORY: "out of memory",
    Exit.NUMERIC: "numeric: NaN, divergence or loss parity",
    Exit.GATE_FAILED: "gate failed",
    Exit.SOME_FAILED: "finished, some runs failed",
    Exit.CHECKPOINT: "checkpoint not written, or unusable",
    Exit.FOLDER_IN_USE: "folder in use",
    Exit.PREEMPTED: "preempted, checkpoint written",
    Exit.INTERRUPTED: "interrupted by Ctrl-C",
    Exit.TERMINATED: "ended by SIGTERM",
}


class ScalelabError(ValueError):
    """Something a user can mend. `hint` is the way out, one line."""

    exit_code = Exit.INTERNAL

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(ScalelabError):
    """Options that are unknown, out of range or in conflict. Holds every problem found, not the first alone."""

    exit_code = Exit.USAGE

    def __init__(self, problems: str | Iterable[str], *, hint: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class PreflightError(ScalelabError):
    """The machine lacks what the run asks for: devices, disk, permissions, a library."""

    exit_code = Exit.PREFLIGHT


class NumericError(ScalelabError):
    """A loss or gradient that is not finite. `elsewhere`: all that is watched of this rank was, so it is a peer's."""

    exit_code = Exit.NUMERIC
    elsewhere = False


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived where nothing had been started yet."""


def exit_code_of(error: BaseException) -> Exit:
    """The exit code that stands for `error`."""
    if isinstance(error, ScalelabError):
        return error.exit_code
    if isinstance(error, ModelError):
        return Exit.USAGE
    if isinstance(error, DataError):
        return Exit.DATA
    if isinstance(error, OutputError):
        return Exit.PREFLIGHT
    if isinstance(error, SchemaError):
        return Exit.USAGE
    if isinstance(error, Terminated):
        return Exit.TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    if isinstance(error, LoaderDied):
        return Exit.WORKER_DIED
    if is_out_of_memory(error):
        return Exit.OUT_OF_MEMORY
    return Exit.INTERNAL
