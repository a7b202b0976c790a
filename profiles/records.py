"""The records of a run: what each rank writes, one JSON object a line, and what analysis reads. Schema 1.

A rank's file `ranks/r000.jsonl` opens with a `StartRecord`; then come steps and events in the order of the rank's
own timeline, memory once, and an `EndRecord` when the rank ends in order. A host's file `telemetry/h000.jsonl` has a
`TelemetryStartRecord`, then readings of its cards; `telemetry/m000.jsonl` has what the machine itself was at.

Communication: a `CommPlanRecord` lists the collectives of a step, once for all steps that have the same; each step
then has their times alone.

Clocks: `begin_ns` is the host's monotonic clock, which ranks with the same boot id share. `start_seconds` counts from
the rank's first boundary; durations are monotonic. On CUDA both are read from events on the compute stream. Steps and
events tile the timeline: what lies between two of them belongs to the next one. A loss that is not finite is stored as
null.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .used import (
    SCHEMA,
    Base,
    BatchesRecord,
    FlopsRecord,
    HostRecord,
    MemoryRecord,
    MemoryStepRecord,
    Part,
    TelemetryLackRecord,
    TelemetryRecord,
    TelemetryStartRecord,
)

# In the place of a phase's place: that in which the collective was begun.
SAME_PHASE = -2
# What stands before a backend's name where its collectives are recorded; torch writes that into traces.
RECORDED = "recorded_"
PHASES = ("data", "h2d", "forward", "backward", "optimizer")
Role = Literal["warmup", "measured", "profiled", "settle", "memory", "counterfactual", "bare"]
TRAINING: tuple[Role, ...] = ("warmup", "measured")
"""The roles of steps that train; the others come after them and change no parameter."""
Cause = Literal["free_wire", "cached_batch", "no_optimizer", "no_recompute", "bare", "passed_twice", "timed"]
"""What a block of the tail is without. `passed_twice` is bare, but that each collective goes twice through the one call
of Python that is left in a bare step; `timed` is without nothing, and the probe's calls are timed."""
EventKind = Literal["checkpoint", "evaluation", "flush", "profiler", "between_epochs", "failed_step"]


class StartRecord(Base, tag="start", frozen=True, kw_only=True):
    """Who writes this file. `device_uuid` is the card's as CUDA gives it, without a prefix; null on CPU."""

    schema_version: int = SCHEMA
    rank: int
    local_rank: int
    world_size: int
    host: str
    boot_id: str
    pid: int
    device: str
    device_name: str
    device_uuid: str | None = None
    wall_seconds: float
    monotonic_seconds: float
    threads: int
    versions: dict[str, str]


class CollectiveShape(Part, frozen=True, kw_only=True):
    """A collective: its kind, the bytes of the whole tensor as sent, the phase in which it began (null between phases)
    and the name of its group."""

    kind: str
    payload_bytes: int
    phase: str | None
    group: str


class CommPlanRecord(Base, tag="comm_plan", frozen=True, kw_only=True):
    """The collectives of a step in the order in which they were begun, under a number that steps refer to."""

    plan: int
    collectives: list[CollectiveShape]


class CommRecord(Part, frozen=True, kw_only=True, omit_defaults=True):
    """Times of the collectives of `plan` in one step, in nanoseconds from the step's begin.

    `handed_in_ns` and `ended_ns` are the host's. An end is null where it could not be seen; in an `exact` step it is
    when it was, in others the latest that it can have been. `waits` are triples, one after the other: which collective
    the rank waited for, from when, until when, on its timeline. `waited_in` are pairs, for waits in another phase than
    that in which the collective was begun: which triple, and the place of its phase in PHASES, -1 for none of them.
    """

    plan: int
    exact: bool = False
    handed_in_ns: list[int]
    ended_ns: list[int | None]
    waits: list[int]
    waited_in: list[int] = msgspec.field(default_factory=list)


class StepRecord(Base, tag="step", frozen=True, kw_only=True):
    """One optimizer step of one rank. `phases` holds exposed seconds by phase; the rest of `seconds` is in none.

    `skipped` steps left the weights alone, because a gradient overflowed under dynamic loss scaling. `not_finite` names
    the first tensor of the step on this rank that was not finite, of those that are watched. `recompute_seconds` of
    backward went into computing activations again; null where that was not timed. `gc_seconds` of the step went to
    Python's garbage collector, whatever phase it came in. The thread that trains was on a core for `on_core_seconds`
    and waited for one in a run queue for `run_delay_seconds`; null where the system does not count that.
    """

    step: int
    role: Role
    start_seconds: float
    seconds: float
    phases: dict[str, float]
    host_data_seconds: float
    losses: list[float | None]
    samples: int
    lr: float
    grad_square_sum: float | None = None
    grad_replicas: int | None = None
    skipped: bool = False
    not_finite: str | None = None
    recompute_seconds: float | None = None
    gc_seconds: float | None = None
    on_core_seconds: float | None = None
    run_delay_seconds: float | None = None
    begin_ns: int | None = None
    comm: CommRecord | None = None


class ClockRecord(Base, tag="clock", frozen=True, kw_only=True):
    """How far this host's monotonic clock is behind that of rank 0's host, at `at_ns` of its own, and by how much that
    may be wrong. Written by the first rank of each other host, before and after the steps."""

    at_ns: int
    offset_ns: int
    residual_ns: int


class EventRecord(Base, tag="event", frozen=True, kw_only=True):
    """Something between steps. `step` is the step it follows; `values` holds what it found, if anything."""

    event: EventKind
    step: int
    start_seconds: float
    seconds: float
    values: dict[str, Any] = msgspec.field(default_factory=dict)


class WindowRecord(Base, tag="window", frozen=True, kw_only=True):
    """The measured window as a whole: all that a run with the probe off knows."""

    steps: int
    samples: int
    seconds: float


class BlockRecord(Base, tag="block", frozen=True, kw_only=True):
    """A block of steps in the tail, with `cause` taken away (null: nothing). The first `dropped` steps do not count.
    `call_seconds` a step went into the probe's calls, where those were timed."""

    round: int
    cause: Cause | None
    dropped: int
    step_seconds: list[float]
    call_seconds: float | None = None


class BadSampleRecord(Base, tag="bad_sample", frozen=True, kw_only=True):
    """A damaged sample that was left out, once for each rank that met it; without `key` and `offset`, the rest of a
    shard from its first damaged place."""

    split: str
    shard: str
    key: str | None
    offset: int | None
    message: str


class EndRecord(Base, tag="end", frozen=True, kw_only=True):
    """The rank's last line. CUDA figures are the allocator's; null on CPU. `parameters_digest` differs where any bit of
    the parameters does. Written at `monotonic_seconds` of the host's clock."""

    rss_peak_bytes: int
    allocated_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    driver_used_bytes: int | None = None
    parameters_digest: str | None = None
    monotonic_seconds: float | None = None


Record = (
    StartRecord
    | ClockRecord
    | CommPlanRecord
    | StepRecord
    | EventRecord
    | MemoryRecord
    | MemoryStepRecord
    | WindowRecord
    | BlockRecord
    | BadSampleRecord
    | FlopsRecord
    | BatchesRecord
    | HostRecord
    | EndRecord
    | TelemetryStartRecord
    | TelemetryRecord
    | TelemetryLackRecord
)
any_record: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
