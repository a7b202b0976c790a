"""What a sweep came to, on the terminal: a sweep-summary.json in a person's words. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..profiles.analysis.telling import TOO_FEW
from . import scaled
from .fitting import Fitting
from .spread import spread
from .table import size

USD, HOURS = "usd_per_million_samples", "device_hours_per_million_samples"
UNIT = {USD: "$ per million", HOURS: "hours per million"}
# Causes of lost efficiency that are shown: the rest is in the report.
SHOWN = 4
LEAST_SHOWN = 0.005
# Diagnoses that call for nothing here.
QUIET = ("healthy", "cannot_tell")
# Tables from the widest to the narrowest: what stands between a figure and its interval, and columns that are left out.
LAYOUTS = (
    (" ", ()),
    ("\n", ()),
    ("\n", ("peak",)),
    ("\n", ("peak", "comm")),
    ("\n", ("peak", "comm", "step")),
)
# Cells that are named where several have the same to say.
NAMED = 3


def sweep_results(summary: Mapping[str, Any]) -> RenderableType:
    """Every cell, refused and failed ones with the reason; what may be concluded; how it scales."""
    parts: list[RenderableType] = [Text(), _headline(summary)]
    if measured := [cell for cell in summary["cells"] if cell["state"] == "measured"]:
        cost = summary["pareto"]["cost"] if summary["pareto"] else HOURS
        tables = [_cells(measured, cost, below, left) for below, left in LAYOUTS]
        parts.append(Fitting(*tables, Group(*(Text(_in_words(cell, cost)) for cell in measured))))
    parts += [Text(line) for line in _not_measured(summary)]
    parts += [Text(line, style="bold" if bold else "") for line, bold in _conclusions(summary)]
    for series in summary["series"] or []:
        if len(series["points"]) > 1:
            parts += [Text(), Text(f"{series['name']}, {summary['scaling']} scaling", style="bold")]
            in_words = Group(*(Text(_point_in_words(point)) for point in series["points"]))
            parts.append(Fitting(*(_points(series, full=full) for full in (True, False)), in_words))
            parts += [Text(f"warning: {remark}", style="yellow") for remark in series["remarks"]]
            parts += [Text(line) for line in (*_losses(series), *_law(series))]
    parts += [Text(f"note: {note}") for note in summary["notes"]]
    return Group(*parts)


def _headline(summary: Mapping[str, Any]) -> Text:
    counts = summary["runs"]
    told = [f"{counts['measured']} of {counts['planned']} runs measured"]
    others = [name for name in counts if name not in ("planned", "measured", "refused_cells") and counts[name]]
    told += [f"{counts[name]} {name.replace('_', ' ')}" for name in others]
    told += [f"cells refused: {counts['refused_cells']}"] if counts["refused_cells"] else []
    return Text(f"{summary['sweep_id']}: {', '.join(told)}", style="bold")


def _cells(cells: list[Mapping[str, Any]], cost: str, below: str, left: Collection[str]) -> Table:
    """Without the columns `left`; intervals and marks stand behind, or `below`, what they are of."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "cell": lambda cell: cell["name"],
        "runs": lambda cell: str(cell["measured_runs"]),
        "step": lambda cell: _estimate(cell, "step_seconds", below, scaled.time, scaled.times),
        "samples/s": lambda cell: _estimate(cell, "samples_per_second", below),
        UNIT[cost].replace(" ", below, 1): lambda cell: _estimate(cell, cost, below),
        "comm": lambda cell: "-" if cell["comm_share"] is None else f"{cell['comm_share']['mean']:.0%}",
        "peak memory".replace(" ", below): lambda cell: size(cell["peak_bytes"]),
        "": lambda cell: (", " if below == " " else below).join(_marks(cell)),
    }
    shown = {title: of for title, of in columns.items() if title.split("\n")[0] not in left}
    for title in shown:
        table.add_column(title, justify="left" if title in ("cell", "") else "right", no_wrap=True)
    for cell in cells:
        table.add_row(*(Text(of(cell)) for of in shown.values()))
    return table


def _in_words(cell: Mapping[str, Any], cost: str) -> str:
    """What the table has of a cell, where there is no room for a table."""
    told = [
        f"{cell['measured_runs']} run{'s' * (cell['measured_runs'] != 1)}",
        f"step {_estimate(cell, 'step_seconds', ' ', scaled.time, scaled.times)}",
        f"samples/s {_estimate(cell, 'samples_per_second')}",
        f"{UNIT[cost]} {_estimate(cell, cost)}",
    ]
    return f"{cell['name']}: {', '.join([*told, *_marks(cell)])}"


def _marks(cell: Mapping[str, Any]) -> list[str]:
    marks = ["take this"] if cell["recommended"] else []
    marks += ["oversubscribed"] if cell["oversubscribed"] else []
    marks += ["time/cost front"] if cell["on_front"] else []
    marks += [label for label in cell["diagnosis"] or [] if label not in QUIET]
    # Once for all figures of the cell.
    marks += [TOO_FEW] if spread(cell, "samples_per_second", str) == TOO_FEW else []
    return [*marks, f"losses {cell['parity']['state']}"]


def _estimate(
    row: Mapping[str, Any],
    name: str,
    below: str = " ",
    show: Callable[[float], str] = scaled.number,
    bounds: Callable[[Any], str] = scaled.pair,
) -> str:
    if (value := row[name]) is None:
        return "-"
    return show(value["mean"]) + (below + bounds(value["ci95"]) if value["ci95"] else "")


def _not_measured(summary: Mapping[str, Any]) -> list[str]:
    """What is to be said of cells, once for all that have it in common."""
    by_words: dict[str, list[str]] = {}
    for cell in summary["cells"]:
        if cell["why"] is not None:
            state = "" if cell["state"] in ("measured", "missing") else f"{cell['state'].replace('_', ' ')}: "
            by_words.setdefault(f"{state}{cell['why']}", []).append(cell["name"])
    lines = []
    for words, names in by_words.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        several = f"{len(names)} cells: {words} ({', '.join(names[:NAMED])}{more})"
        lines.append(f"{names[0]}: {words}" if len(names) == 1 else several)
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
    elif summary["runs"]["measured"]:
        lines.append((f"not priced: {summary['reasons']['price.usd_per_gpu_hour']}", False))
    return lines


def _points(series: Mapping[str, Any], *, full: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    below = " " if full else "\n"
    for name in ("ranks", "speed-up", "efficiency", "cost per sample", *(("comm", "peak memory") if full else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for point in series["points"]:
        ranks = f"{point['world_size']}" + (below + "oversubscribed" if point["oversubscribed"] else "")
        cells = [ranks, *_scaling_of(point, below)]
        if full:
            cells.append("-" if point["comm_share"] is None else f"{point['comm_share']['mean']:.0%}")
            cells.append(size(point["peak_bytes"]))
        table.add_row(*cells)
    return table


def _scaling_of(point: Mapping[str, Any], below: str) -> list[str]:
    return [
        _estimate(point, "speed_up", below) + _too_few(point, "speed_up", below),
        _estimate(point, "efficiency", below, lambda mean: f"{mean:.1%}", lambda ends: _percents(*ends)),
        "-" if point["cost_ratio"] is None else f"x{scaled.number(point['cost_ratio']['mean'])}",
    ]


def _point_in_words(point: Mapping[str, Any]) -> str:
    speed_up, efficiency, cost = _scaling_of(point, " ")
    crowd = ", oversubscribed" if point["oversubscribed"] else ""
    ranks = f"{point['world_size']} rank{'s' * (point['world_size'] != 1)}{crowd}"
    return f"{ranks}: speed-up {speed_up}, efficiency {efficiency}, cost per sample {cost}"


def _too_few(point: Mapping[str, Any], name: str, below: str) -> str:
    return below + TOO_FEW if spread(point, name, str) == TOO_FEW else ""


def _percents(low: float, high: float) -> str:
    return f"[{low:.1%}, {high:.1%}]"


def _losses(series: Mapping[str, Any]) -> list[str]:
    """What each number of ranks has lost since the one before, the causes of most first."""
    lines = []
    for loss in series["losses"] or []:
        told = loss["reasons"].get("parts")
        if loss["parts"] is not None:
            parts = [part for part in loss["parts"] if abs(part["share"]) >= LEAST_SHOWN]
            parts.sort(key=lambda part: -abs(part["share"]))
            told = ", ".join(f"{part['cause']} {part['share']:+.1%}" for part in parts[:SHOWN])
            told += f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
        what = f"{loss['lost']:.1%} lost" if loss["lost"] >= 0 else f"{-loss['lost']:.1%} won"
        sizes = f"{loss['from_world_size']} to {loss['to_world_size']} ranks"
        lines.append(f"{sizes}: efficiency {what}{': ' + told if told else ''}")
    return lines


def _law(series: Mapping[str, Any]) -> list[str]:
    lines, fits, reasons = [], series["fits"], series["reasons"]
    if (amdahl := fits["amdahl"]) is not None:
        serial = amdahl["serial_fraction"]
        slower = " (above 1: more ranks take longer than one)" if (serial["value"] or 0) > 1 else ""
        told = _parameter("serial fraction", serial, reasons.get("fits.amdahl.serial_fraction.ci95"))
        lines.append(f"Amdahl's law: {told}{slower}; {_fit(amdahl)}")
    if (usl := fits["usl"]) is not None:
        told = [
            _parameter(name, usl[name], reasons.get(f"fits.usl.{name}.ci95")) for name in ("contention", "coherency")
        ]
        lines.append(f"universal scalability law: {', '.join(told)}; {_fit(usl)}")
        lines.append(f"knee: {_place(usl['knee'])}" if usl["knee"] else f"no knee: {reasons['fits.usl.knee']}")
    unfitted = {
        law: reasons[f"fits.{name}"]
        for name, law in (("amdahl", "Amdahl's law"), ("usl", "universal scalability law"))
        if fits[name] is None
    }
    if len(set(unfitted.values())) == 1 and len(unfitted) == len(fits):
        lines.append(f"no law is fitted: {next(iter(unfitted.values()))}")
    else:
        lines += [f"{law}: not fitted: {why}" for law, why in unfitted.items()]
    if (most := series["affordable"]) is None:
        lines.append(f"how far it is worth going is not known: {reasons['affordable']}")
    elif most["world_size"] is None:
        lines.append(f"{most['asked']}: {reasons['affordable.world_size']}")
    else:
        lines.append(f"{most['asked']}: up to {_place(most)}")
    return lines


def _parameter(name: str, value: Mapping[str, Any], why: str | None) -> str:
    words = f" ({TOO_FEW})" if (why or "").startswith(TOO_FEW) else ""
    number = "-" if value["value"] is None else f"{value['value']:.3f}".rstrip("0").rstrip(".")
    return f"{name} {number}{_ends(value['ci95']) or words}"


def _ends(interval: list[float | None] | None) -> str:
    if interval is None:
        return ""
    return f" [{', '.join('?' if each is None else scaled.rough(each) for each in interval)}]"


def _fit(law: Mapping[str, Any]) -> str:
    sizes = ", ".join(map(str, law["world_sizes"]))
    told = f"residual {law['residual']:.1%} over {sizes} ranks"
    exact = law["degrees_of_freedom"] == 0
    return told + (", as many sizes as parameters, so that it tells nothing of the law" if exact else "")


def _place(place: Mapping[str, Any]) -> str:
    far = f", extrapolated from {place['from_world_size']}" if place["extrapolated"] else ""
    ranks = "rank" if place["world_size"] == 1 else "ranks"
    return f"{scaled.rough(place['world_size'])} {ranks}{_ends(place['ci95'])}{far}"
