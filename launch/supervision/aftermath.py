"""After trouble: what the ranks can still tell, and the end of every process of the run. No torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from ...profiles.runfolder import RunFolder
from . import collectives
from .launchers import Launcher
from .pulse import BEAT_SECONDS, FINAL, dump_request, pulse_file, stack_file
from .report import Evidence, Report
from .sighting import Sighting, see
from .verdict import of_death, of_error, of_launcher

# Peers of a rank that is gone meet it in their next collective: the time they get to write down what they met.
PEERS_SECONDS = 2.0
# Stacks are dumped at once, lists of collectives with the next beat.
DUMP_SECONDS = 3 * BEAT_SECONDS
# From the first SIGKILL to the launcher's own end.
KILL_SECONDS = 3.0
# For loader processes to end by themselves.
LOADERS_SECONDS = 1.0
STACK_SIGNAL = signal.SIGUSR2
POLL_SECONDS = 0.02
# Of a rank's log that are searched for why it ended.
LOG_BYTES = 1 << 16


def ask_for_stacks(folder: RunFolder, ranks: Sequence[Sighting]) -> list[Sighting]:
    """Have every rank write its stack and its list of collectives. Returns the ranks as they were before.

    The stack is written in the signal's handler, which needs neither the interpreter nor a free main thread. A stopped
    rank has to run for that. Its peers are stopped first: else all would end the step, half a minute late, and record
    it.
    """
    dump_request(folder.path).touch()
    before = [see(folder.path, seen.rank) for seen in ranks]
    alive = [seen for seen in before if seen.pid is not None and not seen.gone]
    stopped = [seen for seen in alive if seen.process == psutil.STATUS_STOPPED]
    running = [seen for seen in alive if seen not in stopped]
    _send(running, STACK_SIGNAL)
    numbers = [seen.rank for seen in running]
    _wait(DUMP_SECONDS, lambda: len(collectives.read(folder.path, numbers)) == len(numbers))
    if stopped:
        _send(running, signal.SIGSTOP)
        _send(stopped, STACK_SIGNAL, signal.SIGCONT)
        _wait(DUMP_SECONDS, lambda: all(stack_file(folder.path, seen.rank).stat().st_size for seen in stopped))
        _send(stopped, signal.SIGSTOP)
    return before


def _send(ranks: Sequence[Sighting], *signals: signal.Signals) -> None:
    for seen in ranks:
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                os.kill(seen.pid or 0, number)


def _wait(seconds: float, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not done():
        time.sleep(POLL_SECONDS)


def collect(
    folder: RunFolder,
    ranks: Sequence[Sighting],
    launcher: Launcher,
    *,
    hung: bool,
    silence_seconds: float,
    memory: Callable[[], str | None],
) -> Report:
    """What went wrong on the ranks of this host. Kills those that do not end by themselves.

    With `hung`, their stacks are asked for and nobody is waited for. `memory` tells whether the kernel killed for it.
    """
    host, noticed_at = socket.gethostname(), time.monotonic()
    numbers = [seen.rank for seen in ranks]
    if hung:
        seen = ask_for_stacks(folder, ranks)
        stuck = [item for item in seen if item.state not in FINAL and not item.gone]
        lists = collectives.read(folder.path, numbers)
        return Report(
            host=host,
            ranks=seen,
            stuck=stuck,
            collectives=lists,
            silence_seconds=silence_seconds,
            noticed_at=noticed_at,
        )
    seen = _wait_for_peers(folder, ranks, launcher)
    code = launcher.poll()
    if code is not None and code < 0:
        # Its ranks went with it: the kernel ended them, and nobody was left to say how.
        return Report(host=host, ranks=seen, evidence=[of_launcher(code, host, time.monotonic())])
    # Those that are gone now went by themselves; whoever goes later was killed by us.
    lost = {item.rank for item in seen if item.gone and item.state not in FINAL}
    end_all(folder, launcher, seen)
    evidence: list[Evidence] = []
    for item in [see(folder.path, rank) for rank in numbers]:
        error = folder.read(f"errors/{folder.error_file(item.rank).name}") or item.last_words
        if error is not None:
            evidence.append(of_error(error))
        elif item.rank in lost:
            log = folder.log_file(item.rank)
            evidence.append(of_death(item, host, time.monotonic(), memory=memory(), log=log, printed=_end_of(log)))
    return Report(host=host, ranks=seen, evidence=evidence, collectives=collectives.read(folder.path, numbers))


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _wait_for_peers(folder: RunFolder, ranks: Sequence[Sighting], launcher: Launcher) -> list[Sighting]:
    deadline = time.monotonic() + PEERS_SECONDS
    while True:
        seen = [see(folder.path, item.rank) for item in ranks]
        done = all(item.gone or item.state in FINAL for item in seen)
        if done or time.monotonic() > deadline:
            return seen
        launcher.poll()
        time.sleep(POLL_SECONDS)


def end_all(folder: RunFolder, launcher: Launcher, ranks: Sequence[Sighting]) -> None:
    """Leave no process of the run behind: ranks first, so that a launcher can say how they ended, then all the rest."""
    ranks = [see(folder.path, seen.rank) for seen in ranks]
    family = _family(launcher, ranks)
    for seen in ranks:
        if seen.pid is not None and not seen.gone:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(seen.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_SECONDS
    while launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    # Loader processes end with their rank, once they hold nothing that would stay in /dev/shm.
    _, alive = psutil.wait_procs(
        [process for process in family if process.pid != launcher.pid], timeout=LOADERS_SECONDS
    )
    # torchrun gives each rank a group of its own; under a forker there is no group of a rank's pid.
    for group in {launcher.pid, *(seen.pid for seen in ranks if seen.pid is not None)}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + KILL_SECONDS  # a process that waits for a dead disk cannot be killed
    while launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def clear_away(folder: RunFolder, ranks: Sequence[int]) -> None:
    """Remove what the watch, and ranks that were killed, leave. Stacks are kept, beside the errors."""
    live = folder.path / "live"
    for rank in ranks:
        temporary = see(folder.path, rank).temporary
        if temporary is not None and Path(temporary).name.startswith("pymp-"):
            shutil.rmtree(temporary, ignore_errors=True)
        stack = stack_file(folder.path, rank)
        if stack.exists() and stack.stat().st_size:
            stack.replace(folder.path / "errors" / stack.name)
        for path in (stack, pulse_file(folder.path, rank), dump_request(folder.path)):
            path.unlink(missing_ok=True)
    shutil.rmtree(live / "torchrun", ignore_errors=True)
    with contextlib.suppress(OSError):  # another host's files may be in it
        live.rmdir()


def _family(launcher: Launcher, ranks: Sequence[Sighting]) -> list[psutil.Process]:
    """Every process that descends from the launcher or a rank."""
    found: dict[int, psutil.Process] = {}
    for pid in [launcher.pid, *(seen.pid for seen in ranks if seen.pid is not None and not seen.gone)]:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found |= {child.pid: child for child in (process, *process.children(recursive=True))}
    return list(found.values())
