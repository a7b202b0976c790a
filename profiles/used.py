"""The records of what a run used: memory, operations, and what its cards said. `records.py` has the others."""

from __future__ import annotations

import msgspec

SCHEMA = 1
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


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What records are made of. Types are held when one is read; who makes one is trusted."""


class Base(Part, frozen=True, tag_field="kind", tag=str.lower):
    """A record: one line of a file. `kind` says which."""


class MemoryRecord(Base, tag="memory", frozen=True, kw_only=True):
    """Bytes of live model state on this rank, by unique storage, when the gradients of `step` were complete."""

    step: int
    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int


class MemoryPeak(Part, frozen=True, kw_only=True):
    """The instant at which a step held most: its bytes, by kind (they sum to `bytes`), and where the step was.
    `module` is a path in the model, null between its modules."""

    bytes: int
    by_kind: dict[str, int]
    seconds: float
    phase: str | None
    module: str | None


class MemoryTimeline(Part, frozen=True, kw_only=True):
    """Bytes of each kind at `seconds` from a step's begin, in `phase`. Of a long step some instants are kept: those at
    which a kind or all together were highest, or all together lowest, in their part of the step."""

    seconds: list[float]
    phase: list[str | None]
    by_kind: dict[str, list[int]]


class AllocatorRecord(Part, frozen=True, kw_only=True):
    """CUDA's caching allocator over one step, and what the driver says of the whole card after it. `earlier` peaks are
    those of the run before that step; `retries` count over the run."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    earlier_allocated_peak_bytes: int
    earlier_reserved_peak_bytes: int
    reserved_bytes: int
    driver_used_bytes: int
    retries: int


class HostSync(Part, frozen=True, kw_only=True):
    """An operation for whose result the host waits on a GPU: `operator`, called so often in a step from `source`, the
    line of the user's code; null where none is on the stack, as in backward."""

    operator: str
    source: str | None
    calls: int


class MemoryStepRecord(Base, tag="memory_step", frozen=True, kw_only=True):
    """Memory over `step`, whose storages were followed. `failed` says why it could not be told.

    `left_bytes` after it and each followed step before it: what lived on of all that those steps made. `left_by` is the
    module of which `step` left most beyond the step before it. `operators` are the calls of `step` by phase, and
    `operator_seconds_by_phase` what one costs the host that has next to nothing to compute (`operator_seconds`: of
    older records).
    """

    step: int
    failed: str | None = None
    peak: MemoryPeak | None = None
    timeline: MemoryTimeline | None = None
    left_bytes: list[int] = msgspec.field(default_factory=list)
    left_by: str | None = None
    allocator: AllocatorRecord | None = None
    host_syncs: list[HostSync] = msgspec.field(default_factory=list)
    operators: dict[str, int] | None = None
    operator_seconds: float | None = None
    operator_seconds_by_phase: dict[str, float] | None = None


class CountedFlops(Part, frozen=True, kw_only=True):
    """Floating-point operations of one forward and backward of a micro-batch, each once, by branch of the model; and
    those that activation checkpointing does again."""

    by_branch: dict[str, int]
    recomputed: int


class CountedShapes(CountedFlops, frozen=True, kw_only=True):
    """The same of the shapes that `micro_batches` measured micro-batches had."""

    micro_batches: int


class Padding(Part, frozen=True, kw_only=True):
    """Elements of a row that were real, and those that were there, by a mask; means over measured rows."""

    real: float
    there: float


class FlopsRecord(Base, tag="flops", frozen=True, kw_only=True):
    """Written once, by rank 0: operations of the measured micro-batches of all ranks, of `samples_per_micro_batch`
    each. `without_padding` are those of a micro-batch cut to the real length of its rows; `uncounted` the calls a
    micro-batch of operators that have no formula. What could not be told is null, with its reason in `reasons`."""

    samples_per_micro_batch: int
    counted: list[CountedShapes] | None
    without_padding: CountedFlops | None
    padding: dict[str, Padding] | None
    uncounted: dict[str, int] | None
    reasons: dict[str, str] = msgspec.field(default_factory=dict)


class BatchesRecord(Base, tag="batches", frozen=True, kw_only=True):
    """What this rank's measured micro-batches held, in their order: elements of all their tensors, padding included,
    and by mask those that were real. `first_dimensions` are those of the tensors of the commonest one."""

    elements: list[int]
    real: dict[str, list[int]] = msgspec.field(default_factory=dict)
    first_dimensions: list[int] = msgspec.field(default_factory=list)


class HostRecord(Base, tag="host", frozen=True, kw_only=True):
    """A reading of a host at `at_ns` of its monotonic clock; what counts, counts from a begin of its own. Null is what
    the system does not tell.

    `busy_core_seconds` of all its cores, of which `own_core_seconds` went to the run's processes; `stolen_core_seconds`
    were the hypervisor's. Memory is that of the tightest limit around the run. `memory_stall_seconds` is the time in
    which some task waited for memory (Linux's PSI); major faults are the ranks'.
    """

    at_ns: int
    cores: int
    busy_core_seconds: float
    own_core_seconds: float
    stolen_core_seconds: float
    memory_used_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_stall_seconds: float | None = None
    swap_used_bytes: int | None = None
    major_faults: int | None = None


class WatchedCard(Part, frozen=True, kw_only=True):
    """A card of the run, or a `mig` instance of one, and the ranks that have it. `uuid` is as ranks gave it, `name` as
    NVML does; null where it was not given."""

    ranks: list[int]
    uuid: str | None
    name: str | None
    mig: bool


class TelemetryStartRecord(Base, tag="telemetry_start", frozen=True, kw_only=True):
    """Opens a host's telemetry: its cards in the order by which the other lines number them."""

    schema_version: int = SCHEMA
    host: str
    boot_id: str
    cards: list[WatchedCard]


class TelemetryRecord(Base, tag="telemetry", frozen=True, kw_only=True):
    """One reading of `card` at `at_ns` of the host's monotonic clock; null is what was not asked for or not given.

    Percentages are shares of NVML's own last sample period, up to a second; energy counts from the driver's start;
    `clock_events` are the reasons why the clocks are not at their highest.
    """

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


class TelemetryLackRecord(Base, tag="telemetry_lack", frozen=True, kw_only=True):
    """From `at_ns` on, and maybe for this once, `card` does not give `field` (null: anything), and why."""

    card: int
    at_ns: int
    field: str | None
    why: str
