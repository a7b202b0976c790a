"""Starts the ranks of a run, watches them, and says how it ended. Imports no torch.

Nothing is asked of a rank while it trains: where it is stands in its pulse file, that it lives is the kernel's word.
The first trouble ends the run: what every rank can still tell is collected, then all of its processes are killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any, Protocol

from ...profiles.runfolder import RunFolder
from ..errors import Exit
from ..plan import Plan
from ..stopping import SIGNALS
from .aftermath import ask_for_stacks, collect, end_all
from .interrupts import Interrupts
from .launchers import Launcher, start
from .oom_killer import OomCounters
from .pulse import FINAL, Sighting, pulse_file, see
from .verdict import Evidence, decide, status
from .watchdog import Trouble, Watchdog

POLL_SECONDS = 0.1
# Ranks that have said that they are done, but a launcher that does not end.
LEAVE_SECONDS = 10.0


class Display(Protocol):
    """What the supervisor shows progress on."""

    def message(self, message: dict[str, Any]) -> None:
        """A rank has come to another state, or has done a step."""
        ...

    def tick(self) -> None:
        """Time has passed."""
        ...


def supervise(
    folder: RunFolder, plan: Plan, display: Display, start: Callable[[RunFolder, Plan], Launcher] = start
) -> dict[str, Any]:
    """Run all ranks to their end. Writes status.json at the start and at the end, and returns the last one."""
    folder.write("status.json", status("running", None))
    (folder.path / "live").mkdir(exist_ok=True)
    for rank in range(plan.world_size):
        pulse_file(folder.path, rank).touch()
    crew = _Crew(folder, plan, display)
    with Interrupts() as interrupts:
        launcher = start(folder, plan)
        try:
            found = crew.watch(launcher, interrupts)
        finally:
            end_all(launcher, crew.ranks)
    final = _concluded(crew, found, interrupts, launcher.poll())
    folder.write("status.json", final)
    _keep_stacks(folder)
    shutil.rmtree(folder.path / "live", ignore_errors=True)
    return final


class _Crew:
    """All ranks of this host under watch."""

    def __init__(self, folder: RunFolder, plan: Plan, display: Display) -> None:
        self.folder = folder
        self.ranks = [Sighting(rank=rank) for rank in range(plan.world_size)]
        self._config = plan.config
        self._watchdog = Watchdog(plan.config.hang_seconds)
        self._display = display
        self._oom = OomCounters()
        self._shown: dict[int, str] = {}
        self._news: dict[str, Any] | None = None

    def watch(self, launcher: Launcher, interrupts: Interrupts) -> list[Evidence]:
        """Until the run is over in whichever way; what went wrong, if anything."""
        passed_on, deadline, done_at = 0, float("inf"), float("inf")
        while True:
            ended = launcher.poll() is not None
            self._look()
            now = time.monotonic()
            trouble = self._watchdog.look(self.ranks, now)
            if trouble is not None:
                return self._examine(trouble, launcher)
            if ended or now > deadline or now > done_at + LEAVE_SECONDS:
                return []
            if interrupts.count > passed_on:
                passed_on += 1
                if passed_on > 1 or not self._tell(interrupts.signals[0]):
                    return []
                deadline = now + self._config.grace
            if done_at == float("inf") and all(seen.state in FINAL for seen in self.ranks):
                done_at = now
            interrupts.wait(POLL_SECONDS)

    def _look(self) -> None:
        self.ranks = [see(self.folder.path, seen.rank) for seen in self.ranks]
        for seen in self.ranks:
            shown = seen.state or ("training" if seen.step is not None else seen.phase)
            if self._shown.get(seen.rank) != shown and seen.pid is not None:
                self._shown[seen.rank] = shown
                self._display.message({"rank": seen.rank, "state": shown})
        if (news := self.ranks[0].news) is not None and news != self._news:
            self._news = news
            self._display.message({"rank": 0, **news})
        self._display.tick()

    def _tell(self, number: signal.Signals) -> bool:
        """Pass a signal on to the ranks. False when they are not at their steps yet, where they would not hear it."""
        number = signal.SIGTERM if number == signal.SIGHUP else number
        if any(seen.step is None for seen in self.ranks):
            return False
        for seen in self.ranks:
            if not seen.gone and seen.pid is not None:
                os.kill(seen.pid, number)
        return True

    def _examine(self, trouble: Trouble, launcher: Launcher) -> list[Evidence]:
        """What can be learnt of `trouble` from this host's ranks, before they are killed."""
        stuck = ask_for_stacks(self.folder, self.ranks) if trouble.kind == "hung" else []
        self.ranks, evidence = collect(
            self.folder,
            self.ranks,
            launcher,
            hung=[seen for seen in stuck if seen.rank in trouble.ranks],
            silence=self._watchdog.silence_seconds,
            memory=self._oom.explain,
        )
        return evidence


def _concluded(crew: _Crew, found: list[Evidence], interrupts: Interrupts, code: int | None) -> dict[str, Any]:
    """The final status: what was found, else what the ranks say of their own end, else what the user did."""
    if found:
        return decide(found)
    if all(seen.state == "finished" for seen in crew.ranks):
        return _finished(crew)
    stopped = [seen for seen in crew.ranks if seen.state == "stopped"]
    if stopped:
        return _stopped(Exit(stopped[0].code), min(seen.step or 0 for seen in stopped))
    if interrupts.count:
        asked = SIGNALS[interrupts.signals[0]]
        cause = f"ended by {interrupts.signals[0].name}" + (" before the step was done" if interrupts.count > 1 else "")
        return status("interrupted", asked, cause=cause, hint="what the ranks had done until then is in the run folder")
    log = crew.folder.path / "logs" / "launcher.log"
    return status(
        "failed", Exit.WORKER_DIED, cause=f"the ranks could not be started (exit code {code})", hint=f"see {log}"
    )


def _finished(crew: _Crew) -> dict[str, Any]:
    if all(seen.code == Exit.OK for seen in crew.ranks):
        return status("finished", Exit.OK)
    note = crew.folder.read("errors/incomplete.json") or {"cause": "something of the run is missing", "hint": ""}
    return status("finished", Exit.SOME_FAILED, cause=note["cause"], hint=note["hint"])


def _stopped(code: Exit, step: int) -> dict[str, Any]:
    why = {Exit.PREEMPTED: "SIGUSR1", Exit.INTERRUPTED: "Ctrl-C", Exit.TERMINATED: "SIGTERM or SIGHUP"}[code]
    state = "preempted" if code is Exit.PREEMPTED else "interrupted"
    hint = "requeue the job: its last checkpoint is in the run folder" if code is Exit.PREEMPTED else ""
    return status(state, code, cause=f"stopped by {why} after step {step}, on all ranks", hint=hint)


def _keep_stacks(folder: RunFolder) -> None:
    """Stacks that were asked for outlive the folder that they were written in."""
    for path in sorted((folder.path / "live").glob("*.stack")):
        if path.stat().st_size:
            path.replace(folder.path / "errors" / path.name)
