"""From torch's loader processes to the caller: batches, what was left out of them, and what ended a process."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._C import _remove_worker_pids  # pyright: ignore[reportAttributeAccessIssue] (missing in its stub)
from torch.utils.data import DataLoader

from ..errors import DataError, LoaderDied
from ..skipping import BadSample, BadSamples

Batch = dict[str, torch.Tensor]

# torch/csrc/DataLoader.cpp, raised by the handler of SIGCHLD wherever the main thread is, and dataloader.py.
SHARED_MEMORY = Path("/dev/shm")
_KILLED = re.compile(r"DataLoader worker \(pid (?P<pids>\d+)\) is killed by signal: (?P<signal>[^.]*)")
_EXITED = re.compile(
    r"DataLoader worker \(pid(\(s\))? (?P<pids>[\d, ]+)\) exited unexpectedly( with exit code (?P<code>\d+))?"
)
_FEWER = "use fewer loader processes (--workers) or fewer batches kept ready (--prefetch)"
SETTLE_SECONDS = 2.0
"""How long the end of a process may take from its last connection to its exit code; a core dump is written between."""
# By process id: loader processes that this process started, each with its index. Kept after their end, which may be
# asked about when the loader is gone.
_started: dict[int, tuple[int, BaseProcess]] = {}


class Delivered(NamedTuple):
    """What a loader process hands over: a batch or the error that ends it, and the damaged samples met on the way.

    An error is handed over, not raised: torch would wrap it in the traceback of its process.
    """

    batch: Batch | DataError
    skipped: Sequence[BadSample]


class Deliveries(Iterator[Batch]):
    """One pass over a torch loader of `Delivered`, with its processes. Ends them when it ends, however it ends."""

    def __init__(self, loader: DataLoader[Delivered], bad: BadSamples) -> None:
        self._bad = bad
        self._iterator: Iterator[Delivered] | None = iter(loader)
        for pid in [pid for pid, (_, process) in _started.items() if process.exitcode is not None]:
            del _started[pid]
        # torch has no public way to its processes.
        for index, process in enumerate(getattr(self._iterator, "_workers", ())):
            _started[process.pid] = (index, process)

    def __next__(self) -> Batch:
        """The next batch. Raises `DataError` at damage that is not left out, `LoaderDied` if a loader process died."""
        if self._iterator is None:
            raise StopIteration
        delivered = death = None
        try:
            delivered = next(self._iterator, None)
        except (RuntimeError, OSError, EOFError) as error:
            death = loader_death(error)
            if death is None and isinstance(error, ConnectionError | EOFError | FileNotFoundError):
                death = self._death_soon()
            if death is None:
                self.close()
                raise
        if death is not None:
            # Not within the except clause: its error holds torch's frames, and with them the other processes.
            self.close()
            raise death
        if delivered is None:
            self.close()
            raise StopIteration
        try:
            if self._bad.budget:
                self._bad.add(delivered.skipped)
            if isinstance(delivered.batch, DataError):
                raise delivered.batch
        except DataError:
            self.close()
            raise
        return delivered.batch

    def _death_soon(self) -> LoaderDied | None:
        """Waits for the end of a process with which the connection was lost: a batch lies in memory that its process
        hands out on request, and torch may ask for it before it hears of the end."""
        processes: list[BaseProcess] = list(getattr(self._iterator, "_workers", ()))
        deadline = time.monotonic() + SETTLE_SECONDS
        try:
            while processes and time.monotonic() < deadline:
                if dead := {process.pid or 0: None for process in processes if process.exitcode not in (None, 0)}:
                    return _died(dead)
                time.sleep(0.01)
        except RuntimeError as late:  # out of torch's handler
            return loader_death(late)
        return None

    def close(self) -> None:
        """Ends the loader processes."""
        iterator, self._iterator = self._iterator, None  # the last reference: torch ends its processes with it
        workers: list[BaseProcess] = list(getattr(iterator, "_workers", ()))
        if any(process.exitcode not in (None, 0) for process in workers):
            _end_at_once(iterator, workers)


def _end_at_once(iterator: Any, workers: Sequence[BaseProcess]) -> None:
    """Ends what is left of a loader that lost a process. torch would ask the others to end, and would wait for ever if
    the lost one held the lock of the event that asks them."""
    iterator._shutdown = True
    _remove_worker_pids(id(iterator))
    if (event := getattr(iterator, "_pin_memory_thread_done_event", None)) is not None:
        event.set()
    for process in workers:
        process.kill()
    for process in workers:
        process.join()
        _free_shared_memory(process.pid)


def _free_shared_memory(pid: int | None) -> None:
    """Removes what the killed process `pid` was about to hand over: torch would have taken its name away in the next
    moment, and nobody else would."""
    for path in SHARED_MEMORY.glob(f"torch_{pid}_*"):
        path.unlink(missing_ok=True)


def loader_death(error: BaseException) -> LoaderDied | None:
    """What `error` says about a loader process that died, None if it says nothing of the kind.

    torch notices in a signal handler, so the error can come out of any line of the main thread, and whatever that
    line belongs to may have wrapped it. Causes and contexts are looked at too.
    """
    chain = _chain(error)
    for link in chain:
        if isinstance(link, LoaderDied):
            return link
    found = _named(chain)
    return _died(found) if found else None


def _died(found: Mapping[int, str | None]) -> LoaderDied:
    for pid in found:
        _free_shared_memory(pid)
    ends = [_end(pid, how) for pid, how in sorted(found.items())]
    hints = [hint for _, hint in ends if hint]
    return LoaderDied("; ".join(text for text, _ in ends), hint=hints[0] if hints else "")


def _named(errors: Sequence[BaseException]) -> dict[int, str | None]:
    """The processes that torch says died, by id, each with its word for how."""
    found: dict[int, str | None] = {}
    for error in errors:
        match = isinstance(error, RuntimeError) and (_KILLED.search(str(error)) or _EXITED.search(str(error)))
        if match:
            parts = match.groupdict()
            how = parts.get("signal") or parts.get("code")
            for pid in map(int, parts["pids"].split(",")):
                found[pid] = found.get(pid) or how
    return found


def _chain(error: BaseException) -> list[BaseException]:
    links: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is not None and not any(link is known for known in links):
            links.append(link)
            waiting += [link.__context__, link.__cause__]
    return links


def _end(pid: int, how: str | None) -> tuple[str, str]:
    """(which process and how it ended, what to do). `how` is torch's word: a signal's description or an exit code."""
    index, process = _started.get(pid, (None, None))
    name = f"loader process (pid {pid})" if index is None else f"loader process {index} (pid {pid})"
    code = process.exitcode if process is not None else None
    if code is None and how is not None:
        code = int(how) if how.isdigit() else -_numbers().get(how, 0) or None
    if code is None or code >= 0:
        ending = (
            f"ended with exit code {code}" if code is not None else f"ended unexpectedly{f': {how}' if how else ''}"
        )
        return f"{name} {ending}", "its own output above says why; --workers 0 reads within the rank, where errors show"
    if -code not in list(signal.Signals):
        return f"{name} was killed by signal {-code}", ""
    return f"{name} was killed by {signal.Signals(-code).name}", _hint(-code)


def _numbers() -> dict[str, int]:
    """Signals by the description that the C library has of them."""
    return {text: number for number in signal.Signals if (text := signal.strsignal(number))}


def _hint(number: int) -> str:
    if number == signal.SIGKILL:
        return (
            f"the kernel kills when memory runs out, that of a container or /dev/shm included ({_shared()}): {_FEWER}"
        )
    if number == signal.SIGBUS:
        return f"/dev/shm is full ({_shared()}): make it larger (docker run --shm-size=8g), or {_FEWER}"
    return "its own output above says more; --workers 0 reads within the rank, where errors show"


def _shared() -> str:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return "there is no /dev/shm"
    return f"/dev/shm has {usage.free >> 20} of {usage.total >> 20} MiB free"
