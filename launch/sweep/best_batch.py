"""The largest micro-batch that fits, for each cell of a sweep by itself: short trial runs, doubling, then bisecting."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orjson
import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from ...profiles.runfolder import RunFolder, appending
from ...profiles.sweepfolder import Attempt, SweepFolder
from ..devices import Devices
from ..errors import Exit, ScalelabError
from ..supervision.interrupts import Interrupts
from ..supervision.oom_killer import memory_cgroups
from .child import Make, make_run
from .matrix import Planned, planned

Line = TypeVar("Line", bound=BaseModel)

# Where the search ends unless told: a CPU computes no faster with more, and has no memory of its own to run out of.
MAX_ON_CPU = 64
MAX_ON_CUDA = 4096
# Bisecting ends this close to the true one, as a share of it: what is gained beyond is less than runs differ by.
RESOLUTION = 1 / 16
# A CPU run may take this share of what memory is free; beyond, the system would end it, or something else.
CPU_SHARE = 0.8
# A trial: two steps, so that the optimizer has its state, without all that comes after steps. A target is looked at in
# evaluations, so that there is none without them.
TRIAL = {
    "warmup": 1,
    "steps": 1,
    "counterfactual": False,
    "profile_steps": 0,
    "eval_every": 0,
    "target": None,
    "save_every": 0,
}


class Display(Protocol):
    """What the search shows its progress on."""

    def trial(self, cell: str, micro_batch: int, log: Path) -> None: ...
    def tick(self) -> None: ...
    def say(self, text: str) -> None: ...


class Trial(BaseModel):
    """One trial run. A line of trials.jsonl."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: str
    micro_batch: int
    exit_code: int
    cause: str | None
    seconds: float
    rss_peak_bytes: int | None


class Fitted(BaseModel):
    """The batch that was found for a cell. A line of batches.jsonl, the last one of a cell counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: str
    micro_batch: int
    why: str


class TrialError(ScalelabError):
    """A trial that ended for another reason than memory, so that it tells nothing of what fits."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(
            f"a trial of micro-batch {trial.micro_batch} failed: {trial.cause or f'exit code {trial.exit_code}'}"
        )
        self.trial = trial


@dataclass(frozen=True)
class Found:
    """The largest micro-batch that fits, None if none does, and why not a larger one."""

    micro_batch: int | None
    why: str


def largest(start: int, most: int, refuses: Callable[[int], str | None]) -> Found:
    """The largest batch up to `most` for which `refuses` gives no reason, to within RESOLUTION: doubling from `start`,
    then bisecting."""
    fits, size = 0, min(start, most)
    while (why := refuses(size)) is None:
        if size == most:
            return Found(most, f"{most} is where the search ends (--best-batch-max)")
        fits, size = size, min(2 * size, most)
    beyond = size
    while beyond - fits > max(1, int(fits * RESOLUTION)):
        size = (fits + beyond) // 2
        reason = refuses(size)
        if reason is None:
            fits = size
        else:
            beyond, why = size, reason
    return Found(fits or None, f"{beyond} does not: {why}")


def fitted(
    folder: SweepFolder,
    cells: Sequence[Planned],
    devices: Devices,
    most: int | None,
    display: Display,
    interrupts: Interrupts,
    make: Make = make_run,
) -> list[Planned]:
    """`cells` with the largest micro-batch that fits each, those for which none does refused. Trials that an earlier
    call has made count, and a cell keeps the batch of the runs that are there of it. A cell that a trial failed in for
    another reason has an `error`, and a failed attempt.
    After a signal, the cells that are left stay as they are, or as their runs have them.

    Raises OutputError when the folder cannot be written.
    """
    found = []
    for each in cells:
        if each.cell.refused is not None:
            found.append(each)
            continue
        trials = _Trials(folder, each, display, interrupts, make)
        if not interrupts.count:
            found.append(_fitted(trials, devices, most))
        elif (kept := trials.kept()) is not None and kept.micro_batch is not None:
            found.append(_of_batch(each, kept.micro_batch, devices))
        else:
            found.append(each)
    return found


def _of_batch(each: Planned, micro_batch: int, devices: Devices) -> Planned:
    return planned(each.cell.name, {**each.given, "micro_batch": micro_batch}, devices, gated=False)


def _fitted(trials: _Trials, devices: Devices, most: int | None) -> Planned:
    each, start = trials.planned, trials.planned.cell.micro_batch or 1
    limit = most or (MAX_ON_CPU if devices.kind == "cpu" else MAX_ON_CUDA)
    name = each.cell.name
    try:
        result = trials.kept() or largest(start, limit, trials.refuses)
    except TrialError as failure:
        trials.display.say(f"{name}: failed: {failure}")
        trials.failed(failure)
        return replace(each, error=failure)
    if trials.interrupts.count:
        return each
    if result.micro_batch is None:
        trials.display.say(f"{name}: no micro-batch fits: {result.why}")
        return replace(each, cell=each.cell.model_copy(update={"refused": f"no micro-batch fits: {result.why}"}))
    trials.display.say(f"{name}: micro-batch {result.micro_batch} fits; {result.why}")
    trials.keep(Fitted(cell=name, micro_batch=result.micro_batch, why=result.why))
    return _of_batch(each, result.micro_batch, devices)


class _Trials:
    """The trial runs of one cell."""

    def __init__(
        self,
        folder: SweepFolder,
        planned: Planned,
        display: Display,
        interrupts: Interrupts,
        make: Make,
    ) -> None:
        self.planned = planned
        self.display = display
        self.interrupts = interrupts
        self._folder = folder
        self._make = make
        self._path = folder.path / "trials.jsonl"
        self._known = {each.micro_batch: each for each in _read(self._path, Trial) if each.cell == planned.cell.name}
        self._batches = folder.path / "batches.jsonl"

    def kept(self) -> Found | None:
        """What was found before, where runs of that batch are there: what fits now may differ, for what else takes
        memory, and runs of two batches are no repeats."""
        name = self.planned.cell.name
        attempts = self._folder.attempts()[0].values()
        if not any(each.cell == name and each.exit_code == Exit.OK and self._folder.run(each) for each in attempts):
            return None
        found = [each for each in _read(self._batches, Fitted) if each.cell == name]
        return Found(found[-1].micro_batch, found[-1].why) if found else None

    def keep(self, found: Fitted) -> None:
        """Write down what was found. Raises OutputError."""
        with appending(self._batches) as write:
            write.lines(found.model_dump_json().encode() + b"\n")

    def refuses(self, size: int) -> str | None:
        """Why a micro-batch of `size` does not fit; None if it does."""
        if self.interrupts.count:
            return "interrupted"
        known = self._known.get(size)
        if known is None or known.exit_code not in (Exit.OK, Exit.OUT_OF_MEMORY):
            if (why := self._expected(size)) is not None:
                return why
            known = self._tried(size)
        if known.exit_code not in (Exit.OK, Exit.OUT_OF_MEMORY) and not self.interrupts.count:
            raise TrialError(known)
        return None if known.exit_code == Exit.OK else known.cause or f"exit code {known.exit_code}"

    def failed(self, failure: TrialError) -> None:
        """Write down that the cell failed, as its first run would have."""
        self._folder.append(
            Attempt(
                cell=self.planned.cell.name,
                repeat=1,
                run=None,
                exit_code=failure.trial.exit_code,
                cause=str(failure),
                started_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                seconds=failure.trial.seconds,
            )
        )

    def _expected(self, size: int) -> str | None:
        """Why it would not fit, where what ran out would be the machine's own memory."""
        config = self.planned.cell.config
        fitted = [each for each in self._known.values() if each.exit_code == Exit.OK and each.micro_batch < size]
        if config["device"] != "cpu" or not fitted:
            return None
        last = max(fitted, key=lambda each: each.micro_batch)
        free = _free_bytes()
        needed = (last.rss_peak_bytes or 0) * size / last.micro_batch * self.planned.cell.world_size
        if needed <= CPU_SHARE * free:
            return None
        return f"it might take {needed / 2**30:.1f} GiB of the {free / 2**30:.1f} GiB that are free"

    def _tried(self, size: int) -> Trial:
        name = f"{self.planned.cell.name}-b{size}"
        out = self._folder.path / "trials"
        out.mkdir(exist_ok=True)
        log = self._folder.path / "logs" / f"{name}.log"
        self.display.trial(self.planned.cell.name, size, log)
        ended = self._make(
            {**self.planned.given, **TRIAL, "micro_batch": size},
            out=out,
            name=name,
            log=log,
            interrupts=self.interrupts,
            tick=self.display.tick,
        )
        trial = Trial(
            cell=self.planned.cell.name,
            micro_batch=size,
            exit_code=ended.exit_code,
            cause=ended.cause,
            seconds=ended.seconds,
            rss_peak_bytes=_rss_peak(ended.run),
        )
        with appending(self._path) as write:
            write.lines(trial.model_dump_json().encode() + b"\n")
        self._known[size] = trial
        what = "fits" if trial.exit_code == Exit.OK else trial.cause
        self.display.say(f"{self.planned.cell.name}: trial of micro-batch {size}: {what}")
        return trial


def _free_bytes() -> int:
    """Memory that this process may still take: the machine's, or what its control groups leave."""
    left = [(group.limit_bytes, group.used_bytes) for group in memory_cgroups()]
    limits = [limit - used for limit, used in left if limit is not None and used is not None]
    return min([psutil.virtual_memory().available, *limits])


def _read(path: Path, kind: type[Line]) -> list[Line]:
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(kind.model_validate(orjson.loads(line)))
        except (ValidationError, orjson.JSONDecodeError):
            continue  # half a line of a call that was killed: what it was of is made again
    return found


def _rss_peak(run: RunFolder | None) -> int | None:
    try:
        summary: Mapping[str, Any] = (run.read("summary.json") if run is not None else None) or {}
    except ValueError:
        return None
    return (summary.get("memory") or {}).get("rss_peak_bytes")
