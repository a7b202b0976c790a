"""What a sweep came to, on the terminal: a sweep-summary.json in a person's words. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .table import size

USD, HOURS = "usd_per_million_samples", "device_hours_per_million_samples"
UNIT = {USD: "$ per million", HOURS: "hours per M samples"}
# Causes of lost efficiency that are shown: the rest is in the report.
SHOWN = 4
LEAST_SHOWN = 0.005


def sweep_results(summary: Mapping[str, Any]) -> RenderableType:
    """Every cell, refused and failed ones with the reason; what may be concluded; how it scales."""
    parts: list[RenderableType] = [Text(), _headline(summary), _cells(summary)]
    parts += [Text(line) for line in _not_measured(summary)]
    parts += [Text(line, style="bold" if bold else "") for line, bold in _conclusions(summary)]
    for series in summary["series"] or []:
        if len(series["points"]) > 1:
            parts += [Text(), Text(f"{series['name']}, {summary['scaling']} scaling", style="bold"), _points(series)]
            parts += [Text(line) for line in _law(series)]
    parts += [Text(f"note: {note}") for note in summary["notes"]]
    return Group(*parts)


def _headline(summary: Mapping[str, Any]) -> Text:
    counts = summary["runs"]
    told = [f"{counts['measured']} of {counts['planned']} runs measured"]
    others = [name for name in counts if name not in ("planned", "measured", "refused_cells") and counts[name]]
    told += [f"{counts[name]} {name.replace('_', ' ')}" for name in others]
    told += [f"cells refused: {counts['refused_cells']}"] if counts["refused_cells"] else []
    return Text(f"{summary['sweep_id']}: {', '.join(told)}", style="bold")


def _cells(summary: Mapping[str, Any]) -> Table:
    cost = summary["pareto"]["cost"] if summary["pareto"] else HOURS
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("cell", no_wrap=True)
    for name in ("runs", "step ms", "samples/s", UNIT[cost], "comm", "peak memory"):
        # No word is cut, however narrow the terminal.
        table.add_column(name, justify="right", min_width=max(map(len, name.split())))
    table.add_column("", min_width=len("reference"))
    for cell in summary["cells"]:
        figures = [
            _estimate(cell["step_seconds"], 1e3),
            _estimate(cell["samples_per_second"]),
            _estimate(cell[cost]),
            "-" if cell["comm_share"] is None else f"{cell['comm_share']['mean']:.0%}",
            size(cell["peak_bytes"]),
        ]
        table.add_row(Text(cell["name"]), str(cell["measured_runs"]), *figures, Text(_mark(cell)))
    return table


def _mark(cell: Mapping[str, Any]) -> str:
    if cell["state"] != "measured":
        return cell["state"].replace("_", " ")
    marks = ["take this"] if cell["recommended"] else []
    marks += ["oversubscribed"] if cell["oversubscribed"] else []
    marks += ["time/cost front"] if cell["on_front"] else []
    marks += [f"losses {cell['parity']['state']}"]
    return ", ".join(marks)


def _estimate(value: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    if value is None:
        return "-"
    interval = value["ci95"]
    spread = "" if interval is None else f" [{interval[0] * scale:.3g}, {interval[1] * scale:.3g}]"
    return f"{value['mean'] * scale:.4g}{spread}"


def _not_measured(summary: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{cell['name']}: {cell['why'] if cell['state'] == 'measured' else _mark(cell) + ': ' + str(cell['why'])}"
        for cell in summary["cells"]
        if cell["why"] is not None
    ]
    return lines + [f"{row['run']}: {row['state']}, counted nowhere: {row['why']}" for row in summary["other_runs"]]


def _conclusions(summary: Mapping[str, Any]) -> list[tuple[str, bool]]:
    if summary["recommended"] is None:
        return [(f"no verdict: {summary['reasons']['recommended']}", True)]
    taken, price = summary["recommended"], summary["price"]
    lines = [(f"take {taken['cell']}: {taken['why']}" if taken["cell"] else f"no verdict: {taken['why']}", True)]
    if summary["fastest"]["best"] is not None:
        lines.append((f"fastest: {summary['fastest']['why']}", False))
    if price["usd_per_gpu_hour"] is not None:
        lines.append((f"priced at {price['usd_per_gpu_hour']:g} USD an hour: {price['price_source']}", False))
    else:
        lines.append((f"not priced: {summary['reasons']['price.usd_per_gpu_hour']}", False))
    return lines


def _points(series: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("ranks", "speed-up", "efficiency", "cost per sample", "comm", "peak memory"):
        table.add_column(name, justify="right")
    table.add_column("lost since the size before, by cause", overflow="fold")
    losses = {loss["to_world_size"]: loss for loss in series["losses"] or []}
    for point in series["points"]:
        cells = [
            f"{point['world_size']}{'' if not point['oversubscribed'] else ' oversubscribed'}",
            _estimate(point["speed_up"]),
            _percent(point["efficiency"]),
            "-" if point["cost_ratio"] is None else f"x{point['cost_ratio']['mean']:.3g}",
            "-" if point["comm_share"] is None else f"{point['comm_share']['mean']:.0%}",
            size(point["peak_bytes"]),
        ]
        table.add_row(*cells, Text(_lost(losses.get(point["world_size"]))))
    return table


def _percent(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    interval = value["ci95"]
    return f"{value['mean']:.1%}" + ("" if interval is None else f" [{interval[0]:.1%}, {interval[1]:.1%}]")


def _lost(loss: Mapping[str, Any] | None) -> str:
    if loss is None:
        return ""
    if loss["parts"] is None:
        return f"{loss['lost']:.1%}: {loss['reasons']['parts']}"
    parts = [part for part in loss["parts"] if abs(part["share"]) >= LEAST_SHOWN]
    told = ", ".join(f"{part['cause']} {part['share']:+.1%}" for part in parts[:SHOWN])
    more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return f"{loss['lost']:.1%}{': ' if told else ''}{told}{more}"


def _law(series: Mapping[str, Any]) -> list[str]:
    lines, fits = [], series["fits"]
    if (amdahl := fits["amdahl"]) is not None:
        serial = amdahl["serial_fraction"]
        slower = " (above 1: more ranks take longer than one)" if (serial["value"] or 0) > 1 else ""
        lines.append(f"Amdahl: {_parameter('serial fraction', serial)}{slower}; {_fit(amdahl)}")
    if (usl := fits["usl"]) is not None:
        told = f"{_parameter('contention', usl['contention'])}, {_parameter('coherency', usl['coherency'])}"
        lines.append(f"universal scalability law: {told}; {_fit(usl)}")
        lines.append(
            f"knee: {_place(usl['knee'])}" if usl["knee"] else f"no knee: {series['reasons']['fits.usl.knee']}"
        )
    else:
        lines.append(f"no law is fitted: {series['reasons']['fits.usl']}")
    if (most := series["affordable"]) is not None:
        lines.append(f"{most['asked']}: up to {_place(most)}")
    else:
        lines.append(f"how far it is worth going is not known: {series['reasons']['affordable']}")
    return lines


def _parameter(name: str, value: Mapping[str, Any]) -> str:
    interval = value["ci95"]
    number = "-" if value["value"] is None else f"{value['value']:.3g}"
    return f"{name} {number}" + ("" if interval is None else f" [{_end(interval[0])}, {_end(interval[1])}]")


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


def _fit(law: Mapping[str, Any]) -> str:
    sizes = ", ".join(map(str, law["world_sizes"]))
    told = f"residual {law['residual']:.1%} over {sizes} ranks"
    exact = law["degrees_of_freedom"] == 0
    return told + (", as many sizes as parameters, so that it tells nothing of the law" if exact else "")


def _place(place: Mapping[str, Any]) -> str:
    interval = place["ci95"]
    spread = "" if interval is None else f" [{_end(interval[0])}, {_end(interval[1])}]"
    far = f", extrapolated from {place['from_world_size']}" if place["extrapolated"] else ""
    return f"{place['world_size']:.3g} ranks{spread}{far}"
