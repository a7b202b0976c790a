"""What `scalelab compare` prints. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from . import units
from .table import size

Comparison = Mapping[str, Any]
# How each effect is called and shown.
_SHOWN = {
    "step_seconds": ("step", lambda value: f"{value * 1e3:.4g} ms"),
    "samples_per_second": ("samples/s", lambda value: f"{value:.4g}"),
    "device_hours_per_million_samples": ("device-hours/M", lambda value: f"{value:.4g}"),
    "usd_per_million_samples": ("$/M samples", lambda value: f"{value:.4g}"),
    "peak_memory_bytes": ("peak memory", size),
    "mfu": ("MFU", lambda value: f"{value:.2%}"),
}
_COLOURS = {"faster": "green", "slower": "red", "no change": "bold", "cannot tell": "yellow"}
_GROUNDS = {
    "rounds": "paired by the rounds of their sweep",
    "runs": "Welch's t between runs, on logarithms",
    "other side": "one side has one run: taken to spread like the other",
    "stored": "one run a side, held against the spread of like runs",
}


def compare_table(found: Comparison) -> RenderableType:
    """The comparison from the verdict down to what it rests on."""
    names = labels(found)
    return Group(
        Text(),
        Text(verdict_line(found), style=_COLOURS[found["verdict"]["word"]]),
        Text(),
        *_sides(found, names),
        *_differences(found, names),
        _effects(found, names),
        *_causes(found, names),
        *map(Text, _rest(found)),
    )


def labels(found: Comparison) -> tuple[str, str]:
    """What to call the two sides: what tells them apart, else A and B."""
    a, b = found["a"], found["b"]
    names = []
    for side in (a, b):
        parts = [side["strategy"]] if a["strategy"] != b["strategy"] else []
        parts += [side["precision"]["name"]] if a["precision"]["name"] != b["precision"]["name"] else []
        parts += [f"{side['world_size']} ranks"] if a["world_size"] != b["world_size"] else []
        names.append(" ".join(map(str, parts)))
    if names[0] != names[1]:
        return names[0], names[1]
    if a["cell"] and b["cell"] and a["cell"] != b["cell"]:
        return a["cell"], b["cell"]
    return (a["name"], b["name"]) if a["name"] != b["name"] else ("A", "B")


def verdict_line(found: Comparison) -> str:
    """The verdict in a sentence."""
    (a, b), verdict, per = labels(found), found["verdict"], found["per"]
    word, low_high = verdict["word"], _percents(verdict["ci95"])
    percent = f"{verdict['effect'] * 100:+.1f} %"
    if word in ("slower", "faster"):
        amount = f"{abs(verdict['effect']) * 100:.3g} %"
        more = "longer" if word == "slower" else "less"
        return f"{b} is {word} than {a}: a {per} takes {amount} {more} {_turned(verdict)}: {_times(found)}"
    if word == "no change":
        return f"no change: a {per} of {b} takes {percent} {low_high} against {a}, within ±{found['margin']:.0%}"
    if verdict["ci95"] is None:
        return f"cannot tell: a {per} of {b} takes {percent} against {a}; {found['reasons']['repeats.needed']}"
    if verdict["method"] == "stored" and verdict["ci95"][0] * verdict["ci95"][1] > 0:
        return (
            f"cannot tell: a {per} of {b} takes {percent} {low_high} against {a}: one run a side takes 99 % certainty"
        )
    return (
        f"cannot tell: a {per} of {b} takes {percent} {low_high} against {a}: neither apart from 0 nor within "
        f"±{found['margin']:.0%}"
    )


def _turned(verdict: Mapping[str, Any]) -> str:
    """The interval of a saving counts savings."""
    low, high = verdict["ci95"]
    return _percents([low, high] if verdict["word"] == "slower" else [-high, -low])


def _times(found: Comparison) -> str:
    seconds = [row["a"] if side == "a" else row["b"] for side in "ba" for row in [_lead(found)]]
    shown = [_SHOWN["step_seconds"][1](1 / each if found["per"] == "sample" else each) for each in seconds]
    return f"{shown[0]}, not {shown[1]}"


def _lead(found: Comparison) -> Mapping[str, Any]:
    return found["effects"][found["verdict"]["of"]]


def _percents(interval: list[float] | None) -> str:
    return "" if interval is None else f"[{interval[0] * 100:.3g}, {interval[1] * 100:.3g}]"


def _sides(found: Comparison, names: tuple[str, str]) -> list[Text]:
    lines = []
    for key, name in zip("ab", names, strict=True):
        side = found[key]
        model = units.model(side["model"])
        model += "" if side["parameters"] is None else f" ({side['parameters']:,} parameters)"
        own = "its own loop" if side["strategy"] == "own" else f"{side['strategy']} {side['precision']['name']}"
        runs = side["runs"]
        which = runs[0]["run_id"] if len(runs) == 1 else f"{len(runs)} runs, {runs[0]['run_id']} the first"
        crowd = " (oversubscribed)" if side["oversubscribed"] else ""
        what = (
            f"{model}, {own}, {side['world_size']} x {side['device_name']}{crowd}, global batch {side['global_batch']}"
        )
        lines.append(Text(f"{key.upper()} = {name}: {what}; {side['measured_steps']} steps; {which}"))
    return lines


def _differences(found: Comparison, names: tuple[str, str]) -> list[RenderableType]:
    if not found["differences"] and not found["unlike"]:
        return []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("differs", *names):
        table.add_column(Text(name))
    rows = {name: pair for fields in found["unlike"].values() for name, pair in fields.items()}
    for name, pair in {**rows, **found["differences"]}.items():
        table.add_row(Text(name), *(Text("-" if value is None else str(value)) for value in pair))
    return [table]


def _effects(found: Comparison, names: tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", *names, "B / A - 1", "95 % interval", "verdict"):
        table.add_column(Text(name), justify="left" if name in ("", "verdict") else "right", no_wrap=name not in names)
    for name, (called, shown) in _SHOWN.items():
        if name not in found["effects"]:
            continue
        row = found["effects"][name]
        if row is None:
            table.add_row(called, "-", "-", style="dim")
            continue
        interval = f"{_percents(row['ci95'])}" if row["ci95"] else "counted" if row["method"] == "counted" else "-"
        effect = f"{row['effect'] * 100:+.1f} %"
        table.add_row(called, shown(row["a"]), shown(row["b"]), effect, interval, row["verdict"])
    if (share := found["effects"]["comm_exposed_share"]) is not None:
        interval = f"{_percents(share['ci95'])} pp" if share["ci95"] else "-"
        cells = f"{share['a']:.1%}", f"{share['b']:.1%}", f"{share['difference'] * 100:+.1f} pp", interval
        table.add_row("exposed comm.", *cells)
    if (loss := found["loss"]) is not None:
        told = {"same": f"same ({loss['tolerance']:g})", "differs": f"DIFFERS at step {loss['first_apart']}", None: ""}
        values = ("-" if loss[key] is None else f"{loss[key]:.6g}" for key in "ab")
        table.add_row(f"loss, step {loss['step']}", *values, "", "", told[loss["verdict"]])
    return table


def _causes(found: Comparison, names: tuple[str, str]) -> list[RenderableType]:
    if (causes := found["causes"]) is None:
        return []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("where the difference is", *(f"{name} ms" for name in names), "B - A ms", "95 % interval"):
        table.add_column(Text(name), justify="left" if name.startswith("where") else "right")
    for row in causes["rows"]:
        table.add_row(row["cause"], *_milliseconds(row))
    table.add_section()
    table.add_row(causes["per"], *_milliseconds(causes["whole"]))
    return [table]


def _milliseconds(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    spread = row["ci95"]
    interval = "" if spread is None else f"[{spread[0] * 1e3:+.1f}, {spread[1] * 1e3:+.1f}]"
    return f"{row['a'] * 1e3:.1f}", f"{row['b'] * 1e3:.1f}", f"{row['difference_seconds'] * 1e3:+.1f}", interval


def _rest(found: Comparison) -> list[str]:
    repeats, method = found["repeats"], found["verdict"]["method"]
    lines = [f"{name} is not known: {why}" for name, why in found["reasons"].items() if not name.endswith(".ci95")]
    line = f"repeats: {repeats['a']} and {repeats['b']}"
    if method is not None:
        source = f" ({repeats['source']})" if repeats["source"] else ""
        line += f"; {_GROUNDS[method]}{source}; two like runs differ by {repeats['sd_between_runs']:.2%} (one sd)"
    lines.append(line)
    if repeats["needed"] is None or repeats["needed"] > min(repeats["a"], repeats["b"]):
        count, why = repeats["needed"] or 3, "first, to know how much they differ among themselves"
        if repeats["needed"]:
            why = f"to find an effect of {repeats['for_effect']:.0%} with {repeats['power']:.0%} power"
        lines.append(f"make {count} each {why}, interleaved: {_sweep(found, count)}")
    for key in "ab":
        lines += [f"left out of {key.upper()}: {why}" for why in found[key]["left_out"].values()]
    return [*lines, *(f"note: {note}" for note in found["notes"])]


def _sweep(found: Comparison, count: int) -> str:
    strategies = dict.fromkeys((found["a"]["strategy"], found["b"]["strategy"]))
    if found["a"]["cell"] or found["b"]["cell"]:
        return f"the same scalelab sweep with --repeats {count}, which makes what is missing"
    return f"scalelab sweep --strategies {','.join(map(str, strategies))} --repeats {count} …"
