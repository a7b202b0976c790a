"""The records of what a run used: memory, operations, and what its cards said. `records.py` has the others."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

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


class Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MemoryRecord(Base):
    """Bytes of live model state on this rank, by unique storage, when the gradients of `step` were complete."""

    kind: Literal["memory"] = "memory"
    step: int
    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int


class MemoryPeak(Base):
    """The instant at which a step held most: its bytes, by kind (they sum to `bytes`), and where the step was.
    `module` is a path in the model, null between its modules."""

    bytes: int
    by_kind: dict[str, int]
    seconds: float
    phase: str | None
    module: str | None


class MemoryTimeline(Base):
    """Bytes of each kind at `seconds` from a step's begin, in `phase`. Of a long step some instants are kept: those at
    which a kind or all together were highest, or all together lowest, in their part of the step."""

    seconds: list[float]
    phase: list[str | None]
    by_kind: dict[str, list[int]]


class AllocatorRecord(Base):
    """CUDA's caching allocator over one step, and what the driver says of the whole card after it. `earlier` peaks are
    those of the run before that step; `retries` count over the run."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    earlier_allocated_peak_bytes: int
    earlier_reserved_peak_bytes: int
    reserved_bytes: int
    driver_used_bytes: int
    retries: int


class HostSync(Base):
    """An operation for whose result the host waits on a GPU: `operator`, called so often in a step from `source`, the
    line of the user's code; null where none is on the stack, as in backward."""

    operator: str
    source: str | None
    calls: int


class MemoryStepRecord(Base):
    """Memory over `step`, whose storages were followed. `failed` says why it could not be told.

    `left_bytes` after it and each followed step before it: what lived on of all that those steps made. `left_by` is the
    module that made most of what `step` left. `operators` are the calls of `step` by phase, and `operator_seconds` what
    a call costs the host that has next to nothing to compute.
    """

    kind: Literal["memory_step"] = "memory_step"
    step: int
    failed: str | None = None
    peak: MemoryPeak | None = None
    timeline: MemoryTimeline | None = None
    left_bytes: list[int] = []
    left_by: str | None = None
    allocator: AllocatorRecord | None = None
    host_syncs: list[HostSync] = []
    operators: dict[str, int] | None = None
    operator_seconds: float | None = None


class CountedFlops(Base):
    """Floating-point operations of one forward and backward of a micro-batch, each once, by branch of the model; and
    those that activation checkpointing does again."""

    by_branch: dict[str, int]
    recomputed: int


class CountedShapes(CountedFlops):
    """The same of the shapes that `micro_batches` measured micro-batches had."""

    micro_batches: int


class Padding(Base):
    """Elements of a row that were real, and those that were there, by a mask; means over measured rows."""

    real: float
    there: float


class FlopsRecord(Base):
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


class BatchesRecord(Base):
    """What this rank's measured micro-batches held, in their order: elements of all their tensors, padding included,
    and by mask those that were real."""

    kind: Literal["batches"] = "batches"
    elements: list[int]
    real: dict[str, list[int]] = {}


class HostRecord(Base):
    """A reading of a host at `at_ns` of its monotonic clock; what counts, counts from a begin of its own. Null is what
    the system does not tell.

    `busy_core_seconds` of all its cores, of which `own_core_seconds` went to the run's processes; `stolen_core_seconds`
    were the hypervisor's. Memory is that of the tightest limit around the run. `memory_stall_seconds` is the time in
    which some task waited for memory (Linux's PSI); major faults are the ranks'.
    """

    kind: Literal["host"] = "host"
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


class WatchedCard(Base):
    """A card of the run, or a `mig` instance of one, and the ranks that have it. `uuid` is as ranks gave it, `name` as
    NVML does; null where it was not given."""

    ranks: list[int]
    uuid: str | None
    name: str | None
    mig: bool


class TelemetryStartRecord(Base):
    """Opens a host's telemetry: its cards in the order by which the other lines number them."""

    kind: Literal["telemetry_start"] = "telemetry_start"
    schema_version: int = SCHEMA
    host: str
    boot_id: str
    cards: list[WatchedCard]


class TelemetryRecord(Base):
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


class TelemetryLackRecord(Base):
    """From `at_ns` on, and maybe for this once, `card` does not give `field` (null: anything), and why."""

    kind: Literal["telemetry_lack"] = "telemetry_lack"
    card: int
    at_ns: int
    field: str | None
    why: str
