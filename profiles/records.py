"""The records of a run: what each rank writes, one JSON object a line, and what analysis reads. Schema 1.

A rank's file `ranks/r000.jsonl` opens with a `StartRecord`; then come steps and events in the order of the rank's
own timeline, memory once, and an `EndRecord` when the rank ends in order. A host's file `telemetry/h000.jsonl` has a
`TelemetryStartRecord`, then readings of its cards.

Communication: a `CommPlanRecord` lists the collectives of a step, once for all steps that have the same; each step
then has their times alone.

Clocks: `begin_ns` is the host's monotonic clock, which ranks with the same boot id share. `start_seconds` counts from
the rank's first boundary; durations are monotonic. On CUDA both are read from events on the compute stream. Steps and
events tile the timeline: what lies between two of them belongs to the next one. A loss that is not finite is stored as
null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

SCHEMA = 1
PHASES = ("data", "h2d", "forward", "backward", "optimizer")
Role = Literal["warmup", "measured", "profiled", "settle", "memory", "counterfactual", "bare"]
TRAINING: tuple[Role, ...] = ("warmup", "measured")
"""The roles of steps that train; the others come after them and change no parameter."""
Cause = Literal["free_wire", "cached_batch", "no_optimizer", "no_recompute", "bare", "passed_twice", "timed"]
"""What a block of the tail is without. `passed_twice` is bare, but that each collective goes twice through the one call
of Python that is left in a bare step; `timed` is without nothing, and the probe's calls are timed."""
EventKind = Literal["checkpoint", "evaluation", "flush", "profiler"]
MEMORY_KINDS = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "communication",
    "temporary",
    "batch",
    "unaccounted",
)
"""What bytes in a step are; docs/memory.md says how each is told."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StartRecord(_Record):
    """Who writes this file. `device_uuid` is the card's as CUDA gives it, without a prefix; null on CPU."""

    kind: Literal["start"] = "start"
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


class CollectiveShape(_Record):
    """A collective: its kind, the bytes of the whole tensor as sent, the phase in which it began (null between phases)
    and the name of its group."""

    kind: str
    payload_bytes: int
    phase: str | None
    group: str


class CommPlanRecord(_Record):
    """The collectives of a step in the order in which they were begun, under a number that steps refer to."""

    kind: Literal["comm_plan"] = "comm_plan"
    plan: int
    collectives: list[CollectiveShape]


class CommRecord(_Record):
    """Times of the collectives of `plan` in one step, in nanoseconds from the step's begin.

    `handed_in_ns` and `ended_ns` are the host's. An end is null where it could not be seen; in an `exact` step it is
    when it was, in others the latest that it can have been. `waits` are triples, one after the other: which collective
    the rank waited for, from when, until when, on its timeline.
    """

    plan: int
    exact: bool = False
    handed_in_ns: list[int]
    ended_ns: list[int | None]
    waits: list[int]


class StepRecord(_Record):
    """One optimizer step of one rank. `phases` holds exposed seconds by phase; the rest of `seconds` is in none.

    `skipped` steps left the weights alone, because a gradient overflowed under dynamic loss scaling. `not_finite` names
    the first tensor of the step on this rank that was not finite, of those that are watched. `recompute_seconds` of
    backward went into computing activations again; null where that was not timed. `gc_seconds` of the step went to
    Python's garbage collector, whatever phase it came in.
    """

    kind: Literal["step"] = "step"
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
    begin_ns: int | None = None
    comm: CommRecord | None = None


class ClockRecord(_Record):
    """How far this host's monotonic clock is behind that of rank 0's host, at `at_ns` of its own, and by how much that
    may be wrong. Written by the first rank of each other host, before and after the steps."""

    kind: Literal["clock"] = "clock"
    at_ns: int
    offset_ns: int
    residual_ns: int


class EventRecord(_Record):
    """Something between steps. `step` is the step it follows; `values` holds what it found, if anything."""

    kind: Literal["event"] = "event"
    event: EventKind
    step: int
    start_seconds: float
    seconds: float
    values: dict[str, Any] = {}


class MemoryRecord(_Record):
    """Bytes of live model state on this rank, by unique storage, when the gradients of `step` were complete."""

    kind: Literal["memory"] = "memory"
    step: int
    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int


class MemoryPeak(_Record):
    """The instant at which a step held most: its bytes, by kind (they sum to `bytes`), and where the step was.
    `module` is a path in the model, null between its modules."""

    bytes: int
    by_kind: dict[str, int]
    seconds: float
    phase: str | None
    module: str | None


class MemoryTimeline(_Record):
    """Bytes of each kind at `seconds` from a step's begin, in `phase`. Of a long step some instants are kept: those at
    which a kind or all together were highest, or all together lowest, in their part of the step."""

    seconds: list[float]
    phase: list[str | None]
    by_kind: dict[str, list[int]]


class AllocatorRecord(_Record):
    """CUDA's caching allocator over one step, and what the driver says of the whole card after it. `earlier` peaks are
    those of the run before that step; `retries` count over the run."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    earlier_allocated_peak_bytes: int
    earlier_reserved_peak_bytes: int
    reserved_bytes: int
    driver_used_bytes: int
    retries: int


class MemoryStepRecord(_Record):
    """Memory over `step`, whose storages were followed. `failed` says why it could not be told.

    `left_bytes` after it and each followed step before it: what lived on of all that those steps made. `left_by` is the
    module that made most of what `step` left.
    """

    kind: Literal["memory_step"] = "memory_step"
    step: int
    failed: str | None = None
    peak: MemoryPeak | None = None
    timeline: MemoryTimeline | None = None
    left_bytes: list[int] = []
    left_by: str | None = None
    allocator: AllocatorRecord | None = None


class WindowRecord(_Record):
    """The measured window as a whole: all that a run with the probe off knows."""

    kind: Literal["window"] = "window"
    steps: int
    samples: int
    seconds: float


class BlockRecord(_Record):
    """A block of steps in the tail, with `cause` taken away (null: nothing). The first `dropped` steps do not count.
    `call_seconds` a step went into the probe's calls, where those were timed."""

    kind: Literal["block"] = "block"
    round: int
    cause: Cause | None
    dropped: int
    step_seconds: list[float]
    call_seconds: float | None = None


class BadSampleRecord(_Record):
    """A damaged sample that was left out, once for each rank that met it; without `key` and `offset`, the rest of a
    shard from its first damaged place."""

    kind: Literal["bad_sample"] = "bad_sample"
    split: str
    shard: str
    key: str | None
    offset: int | None
    message: str


class CountedFlops(_Record):
    """Floating-point operations of one forward and backward of a micro-batch, each once, by branch of the model; and
    those that activation checkpointing does again."""

    by_branch: dict[str, int]
    recomputed: int


class CountedShapes(CountedFlops):
    """The same of the shapes that `micro_batches` measured micro-batches had."""

    micro_batches: int


class Padding(_Record):
    """Elements of a row that were real, and those that were there, by a mask; means over measured rows."""

    real: float
    there: float


class FlopsRecord(_Record):
    """Written once, by rank 0: operations of the measured micro-batches of all ranks, of `samples_per_micro_batch`
    each. `without_padding` are those of a micro-batch cut to the real length of its rows; `uncounted` the calls a
    micro-batch of operators that have no formula. What could not be told is null, with its reason in `reasons`."""

    kind: Literal["flops"] = "flops"
    samples_per_micro_batch: int
    counted: list[CountedShapes] | None
    without_padding: CountedFlops | None
    padding: dict[str, Padding] | None
    uncounted: dict[str, int] | None
    reasons: dict[str, str] = {}


class EndRecord(_Record):
    """The rank's last line. CUDA figures are the allocator's; null on CPU. `parameters_digest` differs where any bit of
    the parameters does."""

    kind: Literal["end"] = "end"
    rss_peak_bytes: int
    allocated_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    driver_used_bytes: int | None = None
    parameters_digest: str | None = None


class WatchedCard(_Record):
    """A card of the run, or a `mig` instance of one, and the ranks that have it. `uuid` is as ranks gave it, `name` as
    NVML does; null where it was not given."""

    ranks: list[int]
    uuid: str | None
    name: str | None
    mig: bool


class TelemetryStartRecord(_Record):
    """Opens a host's telemetry: its cards in the order by which the other lines number them."""

    kind: Literal["telemetry_start"] = "telemetry_start"
    schema_version: int = SCHEMA
    host: str
    boot_id: str
    cards: list[WatchedCard]


class TelemetryRecord(_Record):
    """One reading of `card` at `at_ns` of the host's monotonic clock; null is what was not asked for or not given.

    Percentages are shares of NVML's own last sample period, up to a second; energy counts from the driver's start;
    `clock_events` are the reasons why the clocks are not at their highest.
    """

    kind: Literal["telemetry"] = "telemetry"
    card: int
    at_ns: int
    gpu_percent: float | None = None
    memory_percent: float | None = None
    memory_used_bytes: int | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_celsius: int | None = None
    clock_events: list[str] | None = None
    pcie_rx_bytes_per_second: int | None = None
    pcie_tx_bytes_per_second: int | None = None


class TelemetryLackRecord(_Record):
    """From `at_ns` on, and maybe for this once, `card` does not give `field` (null: anything), and why."""

    kind: Literal["telemetry_lack"] = "telemetry_lack"
    card: int
    at_ns: int
    field: str | None
    why: str


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
    | EndRecord
    | TelemetryStartRecord
    | TelemetryRecord
    | TelemetryLackRecord
)
any_record: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])
