"""What `scalelab doctor` prints. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .table import size

_STYLES = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}


def check_line(check: Mapping[str, str]) -> Text:
    """One check on one line, the way out behind what is not well."""
    line = Text.assemble((f"{check['state']:4}  ", _STYLES[check["state"]]), f"{check['name']:24} ", check["found"])
    if check["state"] != "OK" and check["hint"]:
        line.append(f" ({check['hint']})", style="dim")
    return line


def calibration_table(calibration: Mapping[str, Any]) -> RenderableType:
    """Every rate of a calibration with its spread."""
    rates = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("measured alone", "median", "10th to 90th percentile", "times"):
        rates.add_column(name, justify="left" if name.startswith("measured") else "right")
    for dtype, rate in calibration["matmul_flops_per_second"].items():
        rates.add_row(f"matrix product, {dtype}", *_cells(rate, 1e-9, "GFLOP/s"))
    for name in ("memory", "host_to_device", "device_to_host"):
        if (rate := calibration[f"{name}_bytes_per_second"]) is not None:
            rates.add_row(f"copy, {name.replace('_', ' ')}", *_cells(rate, 1e-9, "GB/s"))
    times = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    kinds = list(calibration["collective_seconds"])
    times.add_column(f"ms, {calibration['ranks']} ranks")
    for kind in kinds:
        times.add_column(kind, justify="right")
    for row in zip(*calibration["collective_seconds"].values(), strict=True):
        times.add_row(size(row[0]["payload_bytes"]), *(f"{each['seconds']['median'] * 1e3:.3g}" for each in row))
    lines = []
    if (factors := calibration["wire_factor"]) is not None:
        sent = ", ".join(f"{kind} {factor:.3f}" for kind, factor in factors.items())
        lines.append(f"bytes sent by a rank for each byte of payload: {sent}")
    if (spread := calibration["run_spread"]) is not None:
        lines.append(
            f"{len(spread['samples_per_second'])} like runs of {spread['model']} under {spread['strategy']}: standard "
            f"deviation {spread['relative_sd']:.1%} of their samples/s"
        )
    if (others := calibration["others_busy_cores"]) is not None:
        low, middle, high = (f"{others[name]:.1f}" for name in ("p10", "median", "p90"))
        lines.append(f"others kept {middle} of {others['cores']} cores busy meanwhile [{low}, {high}]")
    lines += [f"{name} is not known: {why}" for name, why in calibration["reasons"].items()]
    return Group(rates, times, *map(Text, lines))


def _cells(rate: Mapping[str, Any], scale: float, unit: str) -> tuple[str, str, str]:
    low, middle, high = (f"{rate[name] * scale:.4g}" for name in ("p10", "median", "p90"))
    return f"{middle} {unit}", f"{low} to {high}", str(rate["count"])
