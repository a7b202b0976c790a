"""How well the devices were used: operations, and what the cards said of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..section import Block, Column, Figures, Number, Paragraph, Section, Table
from ..words import why

PLACE = 75
CARDS = {
    "gpu_percent": ("a kernel ran, of the time", lambda value: f"{value:.0f}%"),
    "memory_percent": ("memory was read or written, of the time", lambda value: f"{value:.0f}%"),
    "power_watts": ("power of a card", lambda value: units.metric(value, "W")),
    "joules_per_sample": ("energy of a sample", lambda value: units.metric(value, "J")),
    "sm_clock_mhz": ("SM clock", lambda value: f"{value:.0f} MHz"),
    "memory_clock_mhz": ("memory clock", lambda value: f"{value:.0f} MHz"),
    "temperature_celsius": ("temperature", lambda value: f"{value:.0f} °C"),
    "memory_used_bytes": ("memory in use on a card", units.size),
    "pcie_rx_bytes_per_second": ("PCIe, received", lambda value: f"{units.size(value)}/s"),
    "pcie_tx_bytes_per_second": ("PCIe, sent", lambda value: f"{units.size(value)}/s"),
    "p99_h2d_seconds": ("copying to the device, 99th percentile", units.milliseconds),
}


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    use = summary["utilization"]
    blocks: list[Block] = [Figures(_figures(summary))]
    if pictures["branches"]:
        blocks.append(_branches(pictures["branches"]))
    if summary["device"] != "cuda" and use["gpu_percent"] is None:
        blocks.append(Paragraph(f"GPU telemetry: {why(summary, 'utilization.gpu_percent')}.", "note"))
    else:
        blocks += _cards(summary)
    return Section("efficiency", "How well the devices were used", blocks)


def _figures(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    use, model = summary["utilization"], summary["model"]
    peak = use["peak"]
    of = ""
    if peak is not None:
        each = units.metric(peak["flops_per_second"], "FLOP/s")
        of = f"of {each}, {units.peak_of(summary['device'], peak['devices'])}, {peak['source']}"
    flops, useful = model.get("flops_per_sample"), use["useful_fraction"]

    def note(value: float | None, path: str, words: str = "") -> str:
        return why(summary, path) if value is None else words

    return [
        ("MFU", units.percent(use["mfu"]), note(use["mfu"], "utilization.mfu", of)),
        ("HFU", units.percent(use["hfu"]), note(use["hfu"], "utilization.hfu", "with what checkpointing did again")),
        ("Useful, not padding", units.percent(useful), note(useful, "utilization.useful_fraction")),
        ("Operations of a sample", units.metric(flops, "FLOP"), note(flops, "model.flops_per_sample", "both ways")),
    ]


def _branches(branches: Mapping[str, Any]) -> Table:
    columns = [
        Column("branch", "branch", numeric=False),
        Column("a sample", "flops_per_sample"),
        Column("share", "share"),
    ]
    rows = []
    for name, part in branches.items():
        flops, share = part["flops"], part["share"]
        rows.append([name, Number(units.metric(flops, "FLOP"), flops), Number(units.percent(share), share, share)])
    return Table("flops", "Operations by branch of the model", columns, rows)


def _cards(summary: Mapping[str, Any]) -> list[Block]:
    use = summary["utilization"]
    columns = [
        Column("over the measured steps", "what", numeric=False),
        Column("mean of the cards", "value"),
        Column("note", "note", numeric=False),
    ]
    rows = []
    for name, (words, show) in CARDS.items():
        value = use.get(name)
        note = why(summary, f"utilization.{name}") if value is None else ""
        rows.append([words, Number(units.UNKNOWN if value is None else show(value), value), note])
    blocks: list[Block] = [Table("cards", "What the run's cards said of themselves (NVML)", columns, rows)]
    held = use["throttled_share"]
    if held is not None and held["any"] > 0:
        names = ", ".join(f"{name} {share:.0%}" for name, share in held.items() if name != "any")
        blocks.append(Paragraph(f"Clocks were held down in {held['any']:.0%} of the readings: {names}.", "warning"))
    return blocks
