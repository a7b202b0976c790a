"""Makes the runs of a sweep that are missing or failed, one after the other; no run's failure stops the others."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...profiles.sweepfolder import Attempt, SweepFolder, SweepPlan
from ..errors import Exit
from ..stopping import SIGNALS
from ..supervision.interrupts import Interrupts
from .child import Make, make_run
from .gate import Gate

Key = tuple[str, int]


class Display(Protocol):
    """What a sweep shows its progress on."""

    def begins(self, key: Key, number: int, total: int) -> None:
        """A run begins, as number `number` of the `total` that this call makes."""
        ...

    def tick(self) -> None:
        """Time has passed."""
        ...

    def ended(self, attempt: Attempt, number: int, total: int, left_seconds: float | None) -> None:
        """A run has ended; `left_seconds` is what the others take by what their like took so far, None if unknown."""
        ...

    def judged(self, attempt: Attempt) -> None:
        """The losses of a run that had ended before have been held against DDP's."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a call of a sweep came to. `attempts` has the last attempt at every run of the folder; `left` is how many
    runs a signal has kept from being made."""

    exit_code: Exit
    attempts: dict[Key, Attempt]
    left: int


def missing(folder: SweepFolder, plan: SweepPlan, attempts: Mapping[Key, Attempt], repeats: int) -> list[Key]:
    """The runs to make, in order: references that are needed first, then every run up to `repeats` that is not there
    or failed."""

    def done(key: Key) -> bool:
        attempt = attempts.get(key)
        return attempt is not None and attempt.exit_code == Exit.OK and folder.run(attempt) is not None

    todo = [key for key in plan.order if key[1] <= repeats and not done(key)]
    gated = {cell.name for cell in plan.cells if cell.gated}
    unjudged = any(name in gated and each.parity is None for (name, _), each in attempts.items())
    needed = [(cell.name, 1) for cell in plan.references if cell.refused is None and (todo or unjudged)]
    return [*(key for key in needed if not done(key)), *todo]


def run_sweep(
    folder: SweepFolder,
    plan: SweepPlan,
    given: Mapping[str, Mapping[str, Any]],
    display: Display,
    interrupts: Interrupts,
    *,
    repeats: int,
    make: Make = make_run,
) -> Outcome:
    """Make what is missing of `plan`, up to `repeats` of each cell. `given` has each cell's options of a run by name.

    Raises OutputError when the folder cannot be written.
    """
    attempts, _ = folder.attempts()
    gate = Gate(folder, plan.cells, plan.references)
    todo = missing(folder, plan, attempts, repeats)
    for number, (name, repeat) in enumerate(todo, start=1):
        if interrupts.count:
            break
        display.begins((name, repeat), number, len(todo))
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        ended = make(
            given[name],
            out=folder.path,
            name=f"{name}-r{repeat}",
            log=folder.log_file(name, repeat),
            interrupts=interrupts,
            tick=display.tick,
        )
        attempt = Attempt(
            cell=name,
            repeat=repeat,
            run=None if ended.run is None else ended.run.run_id,
            exit_code=ended.exit_code,
            cause=ended.cause,
            started_utc=started,
            seconds=ended.seconds,
        )
        folder.append(attempt)
        attempts[name, repeat] = attempt
        judged = gate.judge(attempts)
        display.ended(attempts[name, repeat], number, len(todo), expected_seconds(todo[number:], attempts))
        for other in judged:
            if (other.cell, other.repeat) != (name, repeat):
                display.judged(other)
    if not interrupts.count:
        for other in gate.judge(attempts):
            display.judged(other)
    left = len(missing(folder, plan, attempts, repeats)) if interrupts.count else 0
    asked = {key: each for key, each in attempts.items() if key[1] <= repeats}
    return Outcome(_exit_code(plan, asked, interrupts), attempts, left)


def expected_seconds(todo: Sequence[Key], attempts: Mapping[Key, Attempt]) -> float | None:
    """Seconds that the runs of `todo` take, by the mean of their cell's finished runs, else of all; None if there are
    none."""
    by_cell: dict[str, list[float]] = {}
    for attempt in attempts.values():
        if attempt.exit_code == Exit.OK:
            by_cell.setdefault(attempt.cell, []).append(attempt.seconds)
    every = [seconds for values in by_cell.values() for seconds in values]
    if not every:
        return None
    return sum(_mean(by_cell.get(name, every)) for name, _ in todo)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _exit_code(plan: SweepPlan, attempts: Mapping[Key, Attempt], interrupts: Interrupts) -> Exit:
    if interrupts.count:
        return SIGNALS[interrupts.signals[-1]]
    cells = {cell.name for cell in plan.cells}
    failed = [name for (name, _), each in attempts.items() if name in cells and each.failed]
    return Exit.SOME_FAILED if failed else Exit.OK
