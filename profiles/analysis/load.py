"""A run folder as one object: what analysis starts from."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from ..calibration import Calibration
from ..records import (
    PHASES,
    TRAINING,
    BadSampleRecord,
    BlockRecord,
    ClockRecord,
    CollectiveShape,
    CommPlanRecord,
    EndRecord,
    EventRecord,
    Record,
    StartRecord,
    StepRecord,
    WindowRecord,
)
from ..runfolder import RunFolder
from ..used import (
    BatchesRecord,
    FlopsRecord,
    HostRecord,
    MemoryRecord,
    MemoryStepRecord,
    TelemetryLackRecord,
    TelemetryRecord,
    TelemetryStartRecord,
)
from .columns import Steps
from .uncollected import uncollected

Kind = TypeVar("Kind", bound=Record)


@dataclass(frozen=True, kw_only=True)
class RankRecords:
    """One rank's records, sorted by kind. `steps` are those that train, as columns, `events` what lies between
    them, `blocks` the tail's. `unreadable` counts lines that a crash or damage left behind."""

    rank: int
    start: StartRecord | None
    steps: Steps
    events: tuple[EventRecord, ...]
    memory: MemoryRecord | None
    memory_step: MemoryStepRecord | None = None
    window: WindowRecord | None
    flops: FlopsRecord | None = None
    batches: BatchesRecord | None = None
    bad_samples: tuple[BadSampleRecord, ...] = ()
    blocks: tuple[BlockRecord, ...] = ()
    clocks: tuple[ClockRecord, ...] = ()
    comm_plans: dict[int, list[CollectiveShape]] = field(default_factory=dict)
    end: EndRecord | None
    profiler_failed: str | None = None
    unreadable: int


@dataclass(frozen=True, kw_only=True)
class HostTelemetry:
    """What a host's cards said, and what they did not. Cards are numbered as in `start`."""

    start: TelemetryStartRecord | None
    readings: tuple[TelemetryRecord, ...]
    lacks: tuple[TelemetryLackRecord, ...]
    unreadable: int


NO_OWN_STEP = "no step was recorded: `with probe.step():` is missing"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run left: its config and environment, how it ended, and every rank's records."""

    run_id: str
    run_json: dict[str, Any]
    status: dict[str, Any]
    ranks: tuple[RankRecords, ...]
    telemetry: tuple[HostTelemetry, ...] = ()
    hosts: tuple[tuple[HostRecord, ...], ...] = ()
    """Readings of each host's cores and memory."""
    unreadable_of_hosts: int = 0
    """Lines of theirs that a crash or damage left behind."""

    @functools.cached_property
    def missing_ranks(self) -> list[int]:
        """Ranks of the run without a file: what is said over all ranks is not known then."""
        known = {rank.rank for rank in self.ranks}
        return [rank for rank in range(self.run_json.get("world_size", 0)) if rank not in known] if known else []

    @property
    def own_loop(self) -> bool:
        """Whether it was a job under a loop of its own, which has none of `scalelab run`'s options."""
        return self.run_json["config"].get("engine") == "own"

    @property
    def why_no_step(self) -> str:
        """Why no measured step is known that every rank finished."""
        if not self.missing_ranks:
            measured = [rank.rank for rank in self.ranks if rank.steps.place or rank.window]
            empty = [rank.rank for rank in self.ranks if rank.rank not in measured]
            if measured and empty:
                return f"the records of rank {_listed(empty)} hold no measured step"
            ended = self.own_loop and self.status.get("state") == "finished"
            if ended and not any(len(rank.steps.measured) for rank in self.ranks):
                return NO_OWN_STEP
            off = self.run_json["config"].get("probe") == "off"
            return "--probe off records no step" if off else "no measured step was recorded"
        return f"the records of rank {_listed(self.missing_ranks)} are missing"

    @functools.cached_property
    def complete_steps(self) -> list[int]:
        """Measured steps that every rank finished."""
        if self.missing_ranks:
            return []
        finished = [set(rank.steps.place) for rank in self.ranks]
        return sorted(set.intersection(*finished)) if finished else []

    @functools.cached_property
    def trained_steps(self) -> list[int]:
        """Steps that every rank finished, warm-up included."""
        if self.missing_ranks:
            return []
        finished = [set(rank.steps.step.tolist()) for rank in self.ranks]
        return sorted(set.intersection(*finished)) if finished else []

    def trained(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """The ranks' `columns` at those steps, as (ranks, steps)."""
        rows = []
        for rank, column in zip(self.ranks, columns, strict=True):
            place = {step: at for at, step in enumerate(rank.steps.step.tolist())}
            rows.append(column[[place[step] for step in self.trained_steps]])
        return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(self.trained_steps))

    @functools.cached_property
    def places(self) -> list[np.ndarray]:
        """Where those steps are in each rank's columns."""
        return [
            np.array([rank.steps.place[step] for step in self.complete_steps], dtype=np.int64) for rank in self.ranks
        ]

    @functools.cached_property
    def step_seconds(self) -> np.ndarray:
        """Seconds of each complete step, (ranks, steps)."""
        return self.column("seconds")

    @functools.cached_property
    def phase_seconds(self) -> dict[str, np.ndarray]:
        """Seconds of each phase as recorded, communication included, (ranks, steps)."""
        return {name: self._stacked([rank.steps.phases[name] for rank in self.ranks]) for name in PHASES}

    @property
    def calibration(self) -> Calibration | None:
        """What the machine was measured to do, as far as it was known when the run began."""
        return self._calibration[0]

    @property
    def why_no_calibration(self) -> str:
        """Why it is not known; empty where it is."""
        return self._calibration[1]

    @functools.cached_property
    def _calibration(self) -> tuple[Calibration | None, str]:
        if (given := self.run_json.get("calibration")) is None:
            return None, "this machine had no calibration when the run began (scalelab doctor --calibrate makes one)"
        try:
            return Calibration.model_validate(given), ""
        except ValidationError as error:
            first = error.errors()[0]
            return (
                None,
                f"the calibration in run.json cannot be read: {'.'.join(map(str, first['loc']))}, {first['msg']}",
            )

    def column(self, name: str) -> np.ndarray:
        """Number `name` of each measured step that every rank finished, as (ranks, steps), NaN where it is null."""
        return self._stacked([rank.steps.numbers[name] for rank in self.ranks])

    def _stacked(self, columns: list[np.ndarray]) -> np.ndarray:
        chosen = [column[places] for column, places in zip(columns, self.places, strict=True)]
        return np.asarray(chosen, dtype=np.float64).reshape(len(self.ranks), len(self.complete_steps))


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (" and others" if len(ranks) > 8 else "")


def load_run(folder: RunFolder) -> Run:
    """Read `folder`. Raises ValueError naming what is missing when it is no run folder."""
    run_json = folder.read("run.json")
    if run_json is None:
        raise ValueError(f"{folder.path}: holds no run.json, so it is no run folder")
    with uncollected():
        watched = folder.hosts()
        hosts = tuple(tuple(record for record in records if isinstance(record, HostRecord)) for records, _ in watched)
        ranks = tuple(_rank_records(folder, rank) for rank in folder.ranks())
        telemetry = tuple(_host_telemetry(*found) for found in folder.telemetry())
    return Run(
        run_id=folder.run_id,
        run_json=run_json,
        status=folder.read("status.json") or {"state": "unknown", "exit_code": None},
        ranks=ranks,
        telemetry=telemetry,
        hosts=hosts,
        unreadable_of_hosts=sum(unreadable for _, unreadable in watched),
    )


def _rank_records(folder: RunFolder, rank: int) -> RankRecords:
    records, unreadable = folder.records(rank)
    steps = [record for record in records if isinstance(record, StepRecord) and record.role in TRAINING]
    last = steps[-1].step if steps else None
    records = [record for record in records if not isinstance(record, StepRecord)]
    return RankRecords(
        rank=rank,
        start=_first(records, StartRecord),
        steps=Steps.of(steps),
        blocks=tuple(record for record in records if isinstance(record, BlockRecord)),
        clocks=tuple(record for record in records if isinstance(record, ClockRecord)),
        events=tuple(
            r
            for r in records
            if isinstance(r, EventRecord) and (last is None or r.step <= last or r.event == "profiler")
        ),
        memory=_first(records, MemoryRecord),
        memory_step=_first(records, MemoryStepRecord),
        window=_first(records, WindowRecord),
        flops=_first(records, FlopsRecord),
        batches=_first(records, BatchesRecord),
        bad_samples=tuple(record for record in records if isinstance(record, BadSampleRecord)),
        comm_plans={record.plan: record.collectives for record in records if isinstance(record, CommPlanRecord)},
        end=_first(records, EndRecord),
        profiler_failed=_profiler_failed(records),
        unreadable=unreadable,
    )


def _host_telemetry(records: list[Record], unreadable: int) -> HostTelemetry:
    return HostTelemetry(
        start=_first(records, TelemetryStartRecord),
        readings=tuple(record for record in records if isinstance(record, TelemetryRecord)),
        lacks=tuple(record for record in records if isinstance(record, TelemetryLackRecord)),
        unreadable=unreadable,
    )


def _profiler_failed(records: Iterable[Record]) -> str | None:
    """Why the profiler window left no trace."""
    windows = (record for record in records if isinstance(record, EventRecord) and record.event == "profiler")
    return next((str(window.values["failed"]) for window in windows if "failed" in window.values), None)


def _first(records: Iterable[Record], kind: type[Kind]) -> Kind | None:
    return next((record for record in records if isinstance(record, kind)), None)
