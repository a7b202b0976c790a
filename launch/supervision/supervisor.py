"""Starts the ranks of a run on this host, watches them, and says how the run ended. Imports no torch.

Nothing is asked of a rank while it trains: where it is stands in its pulse file, that it lives is the kernel's word.
The first trouble, here or on another host, ends the run: what every rank can still tell is collected, then all of its
processes are killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

from ...profiles.runfolder import RunFolder
from ...profiles.storage import OutputError
from ..errors import Exit
from ..plan import Plan
from .aftermath import clear_away, collect, end_all
from .host import watched_host
from .interrupts import Interrupts
from .launchers import Launcher, Start
from .oom_killer import OomCounters
from .pulse import EVENTS, FINAL, prepare
from .report import Report
from .sighting import Sighting, see
from .telemetry import watched_cards
from .verdict import conclude
from .watchdog import Watchdog

POLL_SECONDS = 0.1
# Ranks that have said that they are done, but a launcher that does not end.
LEAVE_SECONDS = 10.0
# Between two looks: a longer time means that this process was stopped.
GAP_SECONDS = 2.0


class Display(Protocol):
    """What the supervisor shows progress on."""

    def message(self, message: dict[str, Any]) -> None:
        """A rank has come to another state, or has done a step."""
        ...

    def tick(self) -> None:
        """Time has passed."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know now."""
        ...


class Hosts(Protocol):
    """The supervisors of the run's other hosts."""

    def trouble(self) -> str | None:
        """Keep in touch. `lost` or `hung` when another host has trouble of that kind, or is not heard of any more."""
        ...

    def settle(self, report: Report) -> dict[str, Any]:
        """Exchange reports; the final status, the same on all hosts."""
        ...


class Alone:
    """There are no other hosts."""

    def trouble(self) -> None:
        return None

    def settle(self, report: Report) -> dict[str, Any]:
        return conclude([report])


def supervise(
    folder: RunFolder,
    plan: Plan,
    display: Display,
    start: Start,
    *,
    hosts: Hosts | None = None,
    owned: bool = True,
) -> dict[str, Any]:
    """Run this host's ranks, which the launcher that `start` starts will start, to their end; returns the final status,
    and writes it.

    Without `owned` another host writes it, into the same folder.
    """
    final = _run(folder, plan, display, hosts or Alone(), start)
    if final["exit_code"] in (Exit.SOME_FAILED, Exit.CHECKPOINT):
        # Rank 0 has written what is missing.
        final |= folder.read("errors/incomplete.json") or {}
    if owned:
        # On a disk that is full the status is still told.
        with contextlib.suppress(OutputError):
            folder.write("status.json", final)
    return final


def _run(folder: RunFolder, plan: Plan, display: Display, hosts: Hosts, start: Start) -> dict[str, Any]:
    with Interrupts() as interrupts:
        crew = _Crew(folder, plan, display, hosts)
        launcher = start(folder, plan)
        with watched_cards(folder, plan), watched_host(folder, plan.config.node_rank) as look:
            try:
                report = crew.watch(launcher, interrupts, look)
            finally:
                end_all(folder, launcher, crew.ranks)
                clear_away(folder, [seen.rank for seen in crew.ranks])
        return hosts.settle(replace(report, launcher_code=launcher.poll()))


class _Crew:
    """All ranks of this host under watch."""

    def __init__(self, folder: RunFolder, plan: Plan, display: Display, hosts: Hosts) -> None:
        self.ranks = [Sighting(rank=rank) for rank in plan.local_ranks]
        self._folder = folder
        self._config = plan.config
        self._watchdog = Watchdog(plan.config.hang_seconds)
        self._display = display
        self._hosts = hosts
        self._oom = OomCounters()
        self._shown: dict[int, str] = {}
        self._news: dict[str, Any] | None = None
        self._doing: str | None = None
        (folder.path / "live").mkdir(exist_ok=True)
        for seen in self.ranks:
            prepare(folder.path, seen.rank)

    def watch(self, launcher: Launcher, interrupts: Interrupts, look: Callable[[Iterable[int]], None]) -> Report:
        """Until the run is over in whichever way; what this host knows of it. `look` is told of the ranks' processes
        all the while."""
        passed_on, deadline, done_at = 0, float("inf"), float("inf")
        looked_at, awake_at = time.monotonic(), float("-inf")
        while True:
            ended = launcher.poll() is not None
            self._look()
            look(seen.pid for seen in self.ranks if seen.pid is not None)
            now = time.monotonic()
            if now - looked_at > GAP_SECONDS:
                # This process did not run, so maybe the whole job did not: who makes no progress shows after a while.
                awake_at = now
            looked_at = now
            trouble = self._watchdog.look(self.ranks, now)
            if trouble == "hung" and now - awake_at < self._watchdog.silence_seconds:
                trouble = None
            trouble = trouble or self._hosts.trouble()
            if trouble is not None:
                return self._collected(launcher, hung=trouble == "hung")
            if ended or now > done_at + LEAVE_SECONDS:
                return self._report()
            if now > deadline:
                return replace(self._report(interrupts.signals[-1]), overran=True)
            while passed_on < interrupts.count:
                number = interrupts.signals[passed_on]
                passed_on += 1
                again = number == signal.SIGINT and interrupts.signals.count(number) > 1
                if again or not self._tell(number):
                    return self._report(number)
                self._display.note(
                    "saving a checkpoint, then ending"
                    if number == signal.SIGUSR1
                    else f"ending after this step ({self._config.grace:g} s at most); Ctrl-C again ends at once"
                )
                # A warning (SIGUSR1) leaves all the time that its checkpoint takes; whatever ends the run does not.
                if number != signal.SIGUSR1:
                    deadline = min(deadline, now + self._config.grace)
            if done_at == float("inf") and all(seen.state in FINAL for seen in self.ranks):
                done_at = now
            time.sleep(POLL_SECONDS)

    def _look(self) -> None:
        self.ranks = [see(self._folder.path, seen.rank) for seen in self.ranks]
        for seen in self.ranks:
            shown = seen.state or ("training" if seen.step is not None else seen.phase)
            if self._shown.get(seen.rank) != shown and seen.pid is not None:
                self._shown[seen.rank] = shown
                self._display.message({"rank": seen.rank, "state": shown})
        doing = self.ranks[0].phase if self.ranks[0].phase in EVENTS else None
        if doing != self._doing:
            self._doing = doing
            self._display.message({"rank": self.ranks[0].rank, "doing": doing})
        news = self.ranks[0].news
        if news is not None and news != self._news:
            self._news = news
            self._display.message({"rank": self.ranks[0].rank, **news})
        self._display.tick()

    def _tell(self, number: signal.Signals) -> bool:
        """Pass a signal on to the ranks. False when they are not at their steps yet, where they would not hear it."""
        number = signal.SIGTERM if number == signal.SIGHUP else number
        if any(seen.step is None for seen in self.ranks):
            return False
        for seen in self.ranks:
            if not seen.gone and seen.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(seen.pid, number)
        return True

    def _report(self, number: signal.Signals | None = None) -> Report:
        return Report(host=socket.gethostname(), ranks=self.ranks, signal=number)

    def _collected(self, launcher: Launcher, *, hung: bool) -> Report:
        silence = self._watchdog.silence_seconds
        return collect(self._folder, self.ranks, launcher, hung=hung, silence_seconds=silence, memory=self._oom.explain)
