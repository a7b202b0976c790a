"""How each number was obtained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..section import Column, Paragraph, Section, Table

PLACE = 130
OF_A_STEP = (
    "from the first work on the device that a profiler's step launched to that of the next, by the host's marks "
    "without a device; steps that all traces have, mean over ranks; the profiler makes them longer"
)


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    rows = _of_traces(summary) if summary["source"] == "imported" else _of_a_run(summary)
    columns = [Column("number", "number", numeric=False), Column("how", "how", numeric=False)]
    blocks: list[Any] = [Table("how", "Of this run", columns, rows)]
    if summary["unreadable_lines"]:
        blocks.append(
            Paragraph(
                f"Lines of the records that could not be read (a half last line, damage), and enter nothing: "
                f"{summary['unreadable_lines']}.",
                "warning",
            )
        )
    return Section("how", "How each number was obtained", blocks)


def _of_traces(summary: Mapping[str, Any]) -> list[list[str]]:
    """Nothing was measured here: all is read off files."""
    files = units.counted(len(summary["trace"]["per_rank"]) if summary["trace"] else 0, "file")
    return [
        ["traces", f"recorded elsewhere by torch's profiler, read from {files}; what they cannot tell is null"],
        ["step", OF_A_STEP],
        ["interval of the step", "95 %, moving-block bootstrap over these steps: how steady they were, no more"],
        ["where the devices' time went", "by the events: computing, else communication, else copies, else idle"],
        ["why a device was idle", "what came next on it, and when the host had launched that"],
        ["exposed communication", "kernels of collectives while nothing computed, waits for late ranks included"],
        ["waiting for input", "idle time while the host was in a DataLoader and had not launched what came next"],
        ["job, devices", "what the traces say of themselves (distributedInfo, deviceProperties), else files' names"],
    ]


def _of_a_run(summary: Mapping[str, Any]) -> list[list[str]]:
    steps, cuda = summary["steps"], summary["device"] == "cuda"
    clock = (
        "events on the compute stream, read when they have completed"
        if cuda
        else "a monotonic clock in the calling thread"
    )
    memory = summary["memory"]["source"] or "not in this run"
    measured, profiled = (units.counted(steps[name], f"{name} step") for name in ("measured", "profiled"))
    return [
        [
            "samples/s, step",
            f"{measured} after {steps['warmup']} of warm-up, timed by {clock}; mean over ranks",
        ],
        [
            "intervals of step and throughput",
            "95 %, moving-block bootstrap over the steps of this one run: how steady it was, not what the next will do",
        ],
        [
            "phases",
            "seconds between a phase's boundaries less what was blocked on communication; with unattributed, the step",
        ],
        ["exposed communication", "when a rank was blocked in a collective and computed nothing, from every record"],
        ["waiting, transfer, queued", _split(summary)],
        ["straggler", "the rank with the most own time (step less blocked), where that is more than the noise"],
        ["counterfactuals", "blocks of steps with and without a cause, in turn, after the measured steps"],
        ["cost of measuring", (summary["overhead"] or {}).get("method", "not measured in this run")],
        ["memory", f"one step after the measured ones in which every storage is followed: {memory}"],
        ["operations", "counted once per shape on a model without memory; a multiply-add is two, padding included"],
        ["MFU", _peak(summary)],
        ["device-hours", "ranks x mean step / samples of a step; an hour of a CPU rank is not an hour of a GPU"],
        ["money", summary["cost"]["price_source"] or "no price was given"],
        ["telemetry", _energy(summary)],
        [
            "traces",
            f"torch's profiler: {profiled} after the measured ones, in no other figure",
        ],
        ["rates at rest", _calibration(summary)],
    ]


def _split(summary: Mapping[str, Any]) -> str:
    told = "a collective is late until the last rank has begun it, then on the wire; the rest is queued"
    residual = summary["comm"]["clock_residual_seconds"]
    if residual is None:
        return told
    return (
        f"{told}; the ranks' clocks agree to {units.milliseconds(residual)}"
        if residual
        else f"{told}; all ranks read one clock"
    )


def _peak(summary: Mapping[str, Any]) -> str:
    peak = summary["utilization"]["peak"]
    return "no peak is known" if peak is None else f"operations over time, as a share of the peak: {peak['source']}"


def _energy(summary: Mapping[str, Any]) -> str:
    source = summary["utilization"]["energy_source"]
    return (
        "not in this run"
        if source is None
        else f"NVML over the measured steps; energy by {source['method'].replace('_', ' ')}"
    )


def _calibration(summary: Mapping[str, Any]) -> str:
    found = summary["calibration"]
    if found is None:
        return "this machine was not calibrated"
    return "; ".join([f"calibration {found['name']} of {found['made_utc']}", *found["doubts"]])
