"""A loader process that dies is named, with how it ended and what helps, wherever in the main thread that shows."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset.utils
from scalelab.data.errors import LoaderDied
from scalelab.data.readers.delivery import loader_death
from scalelab.data.readers.indexed import indexed_loader
from scalelab.data.readers.stream import stream_loader

# torch raises out of its handler of SIGCHLD, between any two instructions: also in a callback of the garbage
# collector, where Python can only print the error. What comes next out of the loader still names the death.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

REQUEST: dict[str, Any] = {"split": "train", "rank": 0, "world_size": 1, "micro_batch": 2, "workers": 2}


@pytest.fixture(autouse=True)
def secure_mode() -> Iterator[None]:
    """Leaves webdataset as it was: the mode holds for the whole process."""
    before = webdataset.utils.enforce_security  # type: ignore[attr-defined]
    yield
    webdataset.utils.enforce_security = before  # type: ignore[attr-defined]


def death_of(act: Callable[[], object]) -> LoaderDied:
    try:
        act()
    except BaseException as error:
        found = loader_death(error)
        if found is None:
            raise
        return found
    pytest.fail("nothing was raised")


@pytest.mark.fault(10)
@pytest.mark.parametrize(
    ("number", "hint"),
    [(signal.SIGKILL, "memory runs out.*MiB free"), (signal.SIGBUS, "/dev/shm is full"), (signal.SIGSEGV, "output")],
)
@pytest.mark.parametrize("loader", [indexed_loader, stream_loader])
def test_a_killed_process_is_named(
    dataset: Path, loader: Callable[..., Any], number: signal.Signals, hint: str
) -> None:
    """Index, process id and signal in one line, what helps in another; the other processes end with the loader."""
    made = loader(dataset, **REQUEST)
    batches = iter(made)
    next(batches)
    victim = multiprocessing.active_children()
    pid = next(process.pid for process in sorted(victim, key=lambda process: process.pid or 0))
    assert pid is not None

    def read_on() -> None:
        os.kill(pid, number)
        for _ in batches:
            pass

    death = death_of(read_on)
    assert re.fullmatch(rf"loader process 0 \(pid {pid}\) was killed by {number.name}", str(death))
    assert re.search(hint, death.hint)
    assert "\n" not in death.hint
    made.close()
    assert not multiprocessing.active_children()


@pytest.mark.fault(10)
def test_it_is_recognised_out_of_any_line_and_any_wrapping(dataset: Path) -> None:
    """While the model computes, and inside of another library's error."""
    made = indexed_loader(dataset, **REQUEST)
    batches = iter(made)
    next(batches)
    pid = max(process.pid or 0 for process in multiprocessing.active_children())

    def compute() -> None:
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            sum(range(1000))

    def wrapped() -> None:
        try:
            compute()
        except RuntimeError as error:
            raise KeyError("something of a library") from error

    death = death_of(wrapped)
    assert str(death) == f"loader process 1 (pid {pid}) was killed by SIGKILL"
    made.close()
    # The loader is closed, and is asked again: by the rank, in its one place for errors.
    assert str(loader_death(death)) == str(death)


@pytest.mark.fault(10)
@pytest.mark.timeout(60)
def test_a_process_that_died_with_a_lock_stops_nobody(dataset: Path) -> None:
    """The lock of the event by which torch ends its processes may be held by the one that was killed, before it has
    handed over all that it has to."""
    made = indexed_loader(dataset, **{**REQUEST, "micro_batch": 1})
    batches = iter(made)
    next(batches)
    assert made._deliveries is not None
    iterator: Any = made._deliveries._iterator
    iterator._workers_done_event._cond.acquire()
    del iterator

    def read_on() -> None:
        os.kill(min(process.pid or 0 for process in multiprocessing.active_children()), signal.SIGKILL)
        list(batches)

    assert "was killed by SIGKILL" in str(death_of(read_on))
    made.close()
    assert not multiprocessing.active_children()


@pytest.mark.fault(10)
def test_a_process_that_exits_is_named_with_its_code(dataset: Path) -> None:
    """An exit code other than 0 is in the message."""
    made = indexed_loader(dataset, **REQUEST, worker_init=lambda index: os._exit(40 + index))
    death = death_of(lambda: next(iter(made)))
    assert re.match(r"loader process ([01] )?\(pid \d+\) ended with exit code 4[01]", str(death))
    made.close()


def test_processes_of_other_loaders_are_named_as_far_as_they_are_known() -> None:
    """A user's own loader dies in the same words of torch; without a number of ours."""
    own = RuntimeError("DataLoader worker (pid 123456789) is killed by signal: Bus error. It is possible that ...")
    assert str(loader_death(own)) == "loader process (pid 123456789) was killed by SIGBUS"
    late = RuntimeError("DataLoader worker (pid(s) 7, 123456789) exited unexpectedly")
    late.__cause__ = own
    assert str(loader_death(late)).endswith("loader process (pid 123456789) was killed by SIGBUS")


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("DataLoader timed out"), EOFError(), OSError(5, "x")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    """What says nothing of a dead loader process is left alone."""
    assert loader_death(error) is None
