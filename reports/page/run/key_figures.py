"""The figures that a reader asks for first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..section import Figures, Section
from ..words import DEVICE, why

PLACE = 10

Rows = list[tuple[str, str, str]]


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    rows = _of_traces(summary, pictures) if summary["source"] == "imported" else _of_a_run(summary)
    return Section("key-figures", "Key figures", [Figures(rows)])


def _of_traces(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Rows:
    trace, step, found = summary["trace"], summary["step_seconds"], pictures["verdict"]["device"]
    usable = [row for row in (trace["per_rank"] if trace else []) if row["unusable"] is None]
    world = summary["world_size"]
    of = "of how many ranks, they do not tell" if world is None else f"of a job of {units.counted(world, 'rank')}"
    note = (
        "with the profiler on, which makes it longer" if step["mean"] is not None else why(summary, "step_seconds.mean")
    )
    profiled = summary["steps"]["profiled"]
    rows: Rows = [
        ("Traces that could be used", units.count(len(usable)), of),
        (
            "Profiled steps that all have",
            units.count(profiled),
            "" if profiled is not None else why(summary, "steps.profiled"),
        ),
        ("Step, mean over ranks", units.milliseconds(step["mean"]), note),
    ]
    for row in found["parts"] if found else []:
        per = f"{units.milliseconds(row['seconds'])} a {found['per']}"
        rows.append((f"{DEVICE[row['part']].capitalize()}, of the devices", units.percent(row["share"]), per))
    return rows


def _of_a_run(summary: Mapping[str, Any]) -> Rows:
    throughput, step, cost = summary["throughput"], summary["step_seconds"], summary["cost"]
    use, memory, overhead = summary["utilization"], summary["memory"], summary["overhead"]
    per_million = "cost.usd_per_million_samples"
    return [
        (
            "Throughput",
            _or(throughput["samples_per_second"], units.figures, " samples/s"),
            _spread(throughput["ci95"], 1, "")
            or _told(
                summary,
                throughput["samples_per_second"],
                why(summary, "throughput.ci95"),
                "throughput.samples_per_second",
            ),
        ),
        (
            "Step, mean over ranks",
            units.milliseconds(step["mean"]),
            _spread(step["ci95"], 1e3, "ms") or why(summary, "step_seconds.ci95"),
        ),
        (
            "Device-hours per million samples",
            units.figures(cost["device_hours_per_million_samples"]),
            _told(
                summary,
                cost["device_hours_per_million_samples"],
                str(cost["device_kind"]),
                "cost.device_hours_per_million_samples",
            ),
        ),
        (
            "Cost per million samples",
            units.usd(cost["usd_per_million_samples"]),
            _told(summary, cost["usd_per_million_samples"], str(cost["price_source"]), per_million),
        ),
        ("MFU", units.percent(use["mfu"]), _told(summary, use["mfu"], _peak(summary), "utilization.mfu")),
        (
            "Peak memory, worst rank",
            units.size(memory["peak_bytes"]),
            _told(summary, memory["peak_bytes"], str(memory["source"]), "memory.peak_bytes"),
        ),
        (
            "Measuring itself, of a step",
            units.percent(overhead and overhead["share_of_step"]),
            ", ".join(filter(None, (_spread(overhead["ci95"], 100, "%"), units.told(overhead["ci95"]))))
            if overhead
            else why(summary, "overhead"),
        ),
        ("Global batch", units.count(summary["global_batch"]), _batch(summary)),
    ]


def _or(value: float | None, show: Any, unit: str) -> str:
    return units.UNKNOWN if value is None else f"{show(value)}{unit}"


def _spread(bounds: list[float] | None, scale: float, unit: str) -> str:
    return f"{units.interval(bounds, scale, unit)} within this run" if bounds else ""


def _told(summary: Mapping[str, Any], value: Any, note: str, path: str) -> str:
    return why(summary, path) if value is None else note


def _peak(summary: Mapping[str, Any]) -> str:
    if (peak := summary["utilization"]["peak"]) is None:
        return ""
    rate = units.metric(peak["flops_per_second"], "FLOP/s")
    return f"of {rate} in {peak['dtype']}, {units.peak_of(summary['device'], peak['devices'])}: {peak['source']}"


def _batch(summary: Mapping[str, Any]) -> str:
    parts = (summary["micro_batch"], summary["grad_accumulation"], summary["world_size"])
    if summary["global_batch"] is None:
        return why(summary, "global_batch")
    return "" if None in parts else f"{parts[0]} a rank x {parts[1]} accumulated x {units.counted(parts[2], 'rank')}"
