"""Any one call to the system made to fail, or to be the last one of a killed process: the first, then the second, …"""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator

import pytest
from scalelab.profiles.storage import OutputError

CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "symlink")
KILLED = 77


@contextlib.contextmanager
def planted(nth: int, fault: Callable[[], None], *, lasting: bool = False) -> Iterator[list[str]]:
    """Within, the `nth` of all CALLS runs `fault` first, and with `lasting` so does each later call of its name.

    Yields the calls that came, by name.
    """
    came: list[str] = []
    struck: list[str] = []

    def plant(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*args: object, **options: object) -> object:
            came.append(name)
            if len(came) == nth:
                struck.append(name)
                fault()
            elif lasting and name in struck:
                fault()
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, plant(name))
        yield came


def failing(code: int) -> Callable[[], None]:
    def fault() -> None:
        raise OSError(code, os.strerror(code))

    return fault


def each_call_failing(
    operation: Callable[[], object], code: int, *, lasting: bool = False, documented: type[Exception] = OutputError
) -> Iterator[Exception | None]:
    """Runs `operation` with its first call failing, then its second and so on; yields what it raised each time, the
    last time None as there was no such call."""
    for nth in itertools.count(1):
        failure = None
        with planted(nth, failing(code), lasting=lasting) as came:
            try:
                operation()
            except documented as error:
                failure = error
        yield failure
        if len(came) < nth:
            assert failure is None
            return


def each_call_killed(operation: Callable[[], object]) -> Iterator[int]:
    """Runs `operation` in forked processes that end at its first call, then at the second and so on; yields how they
    ended, KILLED but for the last."""
    for nth in itertools.count(1):
        with warnings.catch_warnings():
            # A later Python warns of threads; the child makes a few calls and none of a library with threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                with planted(nth, lambda: os._exit(KILLED)):
                    operation()
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        yield code
        if code != KILLED:
            return
