"""What moves on the screen while a sweep goes on: a line for each run when it has ended, and one that says what the run
at hand is doing, redrawn on a terminal and printed now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from rich.live import Live
from rich.text import Text

from ..profiles.sweepfolder import Attempt, SweepFolder, SweepPlan
from . import scaled
from .console import Console

# How often the log of the run at hand is looked at.
LOOK_SECONDS = 1.0
# The same where each look leaves a line.
PLAIN_SECONDS = 10.0
_TAIL_BYTES = 4096


class SweepLive:
    """Shows a sweep's progress. A context manager; off a terminal its lines are plain."""

    def __init__(
        self,
        stream: TextIO,
        folder: SweepFolder,
        plan: SweepPlan,
        plain: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = Console(stream)
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        )
        self._folder = folder
        self.plan = plan
        self._plain = plain
        self._clock = clock
        self._log = folder.path
        self._head = ""
        self._began = self._looked = clock()

    def __enter__(self) -> SweepLive:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def begins(self, key: tuple[str, int], number: int, total: int) -> None:
        self._log, self._head = self._folder.log_file(*key), f"[{number}/{total}] {self.words(*key)}"
        self._begin()

    def trial(self, cell: str, micro_batch: int, log: Path) -> None:
        """A trial of a micro-batch begins."""
        self._log, self._head = log, f"{cell}: trial of micro-batch {micro_batch}"
        self._begin()

    def _begin(self) -> None:
        """Off a terminal a run that is soon over has no line but that of its end."""
        self._began = self._clock()
        self._looked = self._began if self._live is None else float("-inf")
        self.tick()

    def tick(self) -> None:
        now = self._clock()
        if now - self._looked < (PLAIN_SECONDS if self._live is None else LOOK_SECONDS):
            return
        self._looked = now
        line = f"{self._head} ({now - self._began:.0f} s): {self._said()}"
        if self._live is None:
            self.say(line)
            return
        self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)

    def ended(self, attempt: Attempt, number: int, total: int, left_seconds: float | None) -> None:
        what = self._came_to(attempt)
        left = ""
        if number < total:
            left = (
                "; how long the rest takes is unknown" if left_seconds is None else f"; {duration(left_seconds)} left"
            )
        self.say(f"[{number}/{total}] {self.words(attempt.cell, attempt.repeat)}: {what}{left}")

    def judged(self, attempt: Attempt) -> None:
        self.say(f"{self.words(attempt.cell, attempt.repeat)}: {self._came_to(attempt)}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(Text(self._plain(text)), soft_wrap=True)

    def words(self, cell: str, repeat: int) -> str:
        """A run's name for a person."""
        known = next((each for each in (*self.plan.cells, *self.plan.references) if each.name == cell), None)
        if known is None:
            return f"{cell}, repeat {repeat}"
        ranks = f"{known.world_size} rank{'s' * (known.world_size != 1)}"
        more = "" if known.config["checkpointing"] == "none" else f" {known.config['checkpointing']} checkpointing"
        name = f"{known.strategy} {known.precision}{more} {ranks}"
        return f"{name}, reference for losses" if cell.startswith("reference-") else f"{name}, repeat {repeat}"

    def _came_to(self, attempt: Attempt) -> str:
        """Its figures, but none as long as it may have trained something else than it should."""
        if attempt.exit_code:
            return f"exit code {attempt.exit_code}: {attempt.cause}"
        if attempt.parity is None:
            return f"done in {attempt.seconds:.0f} s; figures when its losses have been held against ddp's"
        return self._figures(attempt)

    def _figures(self, attempt: Attempt) -> str:
        run = self._folder.run(attempt)
        summary: dict[str, Any] = {}
        try:
            summary = (run.read("summary.json") if run is not None else None) or {}
        except ValueError as error:
            return str(error)
        mean = (summary.get("step_seconds") or {}).get("mean")
        rate = (summary.get("throughput") or {}).get("samples_per_second")
        if mean is None or rate is None:
            return f"done in {attempt.seconds:.0f} s"
        return f"{scaled.time(mean)} a step, {scaled.number(rate)} samples/s"

    def _said(self) -> str:
        """The last line that the run at hand has printed."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
                lines = log.read().decode(errors="replace").split("\n")
        except OSError:
            return "starting"
        return self._plain(next((line for line in reversed(lines) if line.strip()), "starting"))


def duration(seconds: float) -> str:
    """A span of time in a person's words."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
