"""What a machine was measured to do: rates that runs are held against. No torch.

`scalelab doctor --calibrate` writes it. Every figure carries its spread. A calibration is named, dated, and copied into
the run.json of each run that it fits, so that a report can be rebuilt from the run folder alone.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Above these a calibration was made beside something else: others' share of the host's cores, and a rate's 90th
# percentile over its 10th.
MOST_OTHERS, MOST_SPAN = 0.1, 1.5


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(_Part):
    """`count` repetitions: their median, 10th and 90th percentile."""

    median: Positive
    p10: Positive
    p90: Positive
    count: int = Field(ge=1)

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        low, middle, high = _percentiles(values)
        return cls(median=middle, p10=low, p90=high, count=len(values))


class BusyCores(_Part):
    """Of a host's `cores`, how many others kept busy, over `count` intervals."""

    median: NotNegative
    p10: NotNegative
    p90: NotNegative
    count: int = Field(ge=1)
    cores: int = Field(ge=1)

    @classmethod
    def of(cls, values: Sequence[float], *, cores: int) -> BusyCores:
        """The spread of at least one value."""
        low, middle, high = _percentiles(values)
        return cls(median=middle, p10=low, p90=high, count=len(values), cores=cores)


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 10th percentile, the median and the 90th percentile."""
    ordered = sorted(values)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    return low, statistics.median(ordered), high


class Timing(_Part):
    """A collective whose whole tensor has `payload_bytes`."""

    payload_bytes: int = Field(ge=1)
    seconds: Spread


class RunSpread(_Part):
    """Rates of runs that were alike in all, each in processes of its own. `relative_sd` is their standard deviation as
    a share of their mean."""

    model: str
    strategy: str
    steps: int
    samples_per_second: list[Positive]
    relative_sd: float = Field(ge=0, allow_inf_nan=False)


class Calibration(_Part):
    """A machine's rates. Collectives ran alone between `ranks` ranks; a matrix product and a copy ran alone on one
    device, with `threads` threads on a CPU. What is null has its reason in `reasons`.
    """

    schema_version: int = Field(default=SCHEMA, ge=1, le=SCHEMA)
    name: str
    made_utc: str
    host: str
    device: str
    device_name: str
    cores: int
    threads: int
    ranks: int
    backend: str
    versions: Mapping[str, str]
    matmul_flops_per_second: Mapping[str, Spread]
    memory_bytes_per_second: Spread
    host_to_device_bytes_per_second: Spread | None
    device_to_host_bytes_per_second: Spread | None
    collective_seconds: Mapping[str, list[Timing]]
    wire_factor: Mapping[str, Positive] | None
    run_spread: RunSpread | None
    others_busy_cores: BusyCores | None = None
    """While it was made; None too in files from before that was looked at."""
    reasons: Mapping[str, str]

    def fits(self, *, device: str, device_name: str, cores: int) -> bool:
        """Whether it was made on a machine like that one."""
        return (self.device, self.device_name, self.cores) == (device, device_name, cores)

    @property
    def doubts(self) -> list[str]:
        """What says that its rates are not those of a machine that does nothing else."""
        told, others = [], self.others_busy_cores
        if others is not None and others.median > MOST_OTHERS * others.cores:
            told.append(f"others kept {others.median:.1f} of {others.cores} cores busy while this was measured")
        rates = {f"matrix product, {dtype}": rate for dtype, rate in self.matmul_flops_per_second.items()}
        for way in ("memory", "host_to_device", "device_to_host"):
            if (rate := getattr(self, f"{way}_bytes_per_second")) is not None:
                rates[f"copy, {way.replace('_', ' ')}"] = rate
        spans = {name: rate.p90 / rate.p10 for name, rate in rates.items()}
        if wide := [f"{name} {span:.2g} x" for name, span in spans.items() if span > MOST_SPAN]:
            told.append(f"rates spread too far, 90th over 10th percentile: {'; '.join(wide)}")
        return told

    @property
    def label(self) -> str:
        """What it is called where it is used, with its doubts."""
        doubts = "".join(f"; {doubt}" for doubt in self.doubts)
        return f"calibration {self.name} of {self.made_utc}{doubts}"


def collective_seconds(calibration: Calibration, kind: str, payload_bytes: int) -> float | None:
    """How long such a collective takes alone; None for a kind that was not timed.

    Between two sizes on a straight line of logarithms; beyond the largest, in proportion to the bytes.
    """
    timings = sorted(calibration.collective_seconds.get(kind, ()), key=lambda timing: timing.payload_bytes)
    if not timings:
        return None
    if payload_bytes <= timings[0].payload_bytes:
        return timings[0].seconds.median
    for below, above in itertools.pairwise(timings):
        if payload_bytes <= above.payload_bytes and below.payload_bytes < above.payload_bytes:
            part = math.log(payload_bytes / below.payload_bytes) / math.log(above.payload_bytes / below.payload_bytes)
            low, high = math.log(below.seconds.median), math.log(above.seconds.median)
            return math.exp(low + part * (high - low))
    return timings[-1].seconds.median * payload_bytes / timings[-1].payload_bytes
