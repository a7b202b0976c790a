"""The figures that a reader asks for first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..section import Figures, Section
from ..words import why

PLACE = 10


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    throughput, step, cost = summary["throughput"], summary["step_seconds"], summary["cost"]
    use, memory, overhead = summary["utilization"], summary["memory"], summary["overhead"]
    per_million = "cost.usd_per_million_samples"
    rows = [
        (
            "Throughput",
            _or(throughput["samples_per_second"], units.figures, " samples/s"),
            _spread(throughput["ci95"], 1, "") or why(summary, "throughput.samples_per_second"),
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
        ("MFU", units.percent(use["mfu"]), _told(summary, use["mfu"], _peak(use["peak"]), "utilization.mfu")),
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
    return Section("key-figures", "Key figures", [Figures(rows)])


def _or(value: float | None, show: Any, unit: str) -> str:
    return units.UNKNOWN if value is None else f"{show(value)}{unit}"


def _spread(bounds: list[float] | None, scale: float, unit: str) -> str:
    return f"{units.interval(bounds, scale, unit)} within this run" if bounds else ""


def _told(summary: Mapping[str, Any], value: Any, note: str, path: str) -> str:
    return why(summary, path) if value is None else note


def _peak(peak: Mapping[str, Any] | None) -> str:
    if peak is None:
        return ""
    return f"of {units.metric(peak['flops_per_second'], 'FLOP/s')} in {peak['dtype']} a device: {peak['source']}"


def _batch(summary: Mapping[str, Any]) -> str:
    parts = (summary["micro_batch"], summary["grad_accumulation"], summary["world_size"])
    return "" if None in parts else f"{parts[0]} a rank x {parts[1]} accumulated x {parts[2]} ranks"
