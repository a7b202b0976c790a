"""What `scalelab compare` prints. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..profiles.analysis.telling import TOO_FEW
from . import scaled, units
from .fitting import Fitting
from .table import size

Comparison = Mapping[str, Any]
# How each effect is called and shown.
_SHOWN = {
    "step_seconds": ("step", scaled.time),
    "samples_per_second": ("samples/s", scaled.number),
    "device_hours_per_million_samples": ("device-hours/M", scaled.number),
    "usd_per_million_samples": ("$/M samples", scaled.number),
    "peak_memory_bytes": ("peak memory", size),
    "mfu": ("MFU", lambda value: f"{value:.2%}"),
}
_COLOURS = {"faster": "green", "slower": "red", "no change": "bold", "cannot tell": "yellow"}
_GROUNDS = {
    "rounds": "paired by the rounds of their sweep",
    "runs": "Welch's t between runs, on logarithms",
    "other side": "one side has one run: taken to spread like the other",
    "stored": "one run a side, held against the spread of like runs: intervals are of 95 %, the verdict takes 99 %",
}
# What a reader calls a field that may be null.
_FIELDS = {
    **{f"effects.{name}": called for name, (called, _) in _SHOWN.items()},
    "effects.comm_exposed_share": "exposed communication",
    "repeats.needed": "how many runs it takes",
    "repeats.sd_between_runs": "how much like runs differ",
    "causes": "where the difference is",
    "loss": "whether losses are the same",
}


def compare_table(found: Comparison) -> RenderableType:
    """The comparison from the verdict down to what it rests on."""
    names = labels(found)
    return Group(
        Text(),
        Text(verdict_line(found), style=_COLOURS[found["verdict"]["word"]]),
        Text(),
        *_sides(found, names),
        *_differences(found),
        Fitting(*(_effects(found, spread=each) for each in (True, False)), Group(*map(Text, _in_words(found)))),
        *_causes(found),
        *map(Text, _rest(found)),
    )


def labels(found: Comparison) -> tuple[str, str]:
    """What to call the two sides: what tells them apart, else A and B."""
    a, b = found["a"], found["b"]
    names = []
    for side in (a, b):
        parts = [side["strategy"]] if a["strategy"] != b["strategy"] else []
        parts += [side["precision"]["name"]] if a["precision"]["name"] != b["precision"]["name"] else []
        ranks = f"{side['world_size']} rank{'s' * (side['world_size'] != 1)}"
        parts += [ranks] if a["world_size"] != b["world_size"] else []
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
    percent = _percent(verdict["effect"])
    if word in ("slower", "faster"):
        amount = f"{scaled.rough(abs(verdict['effect']) * 100)} %"
        more = "longer" if word == "slower" else "less"
        return f"{b} is {word} than {a}: a {per} takes {amount} {more} {_turned(verdict)}: {_times(found)}"
    if word == "no change":
        return f"no change: a {per} of {b} takes {percent} {low_high} against {a}, within ±{found['margin']:.0%}"
    if verdict["ci95"] is None:
        return f"cannot tell: a {per} of {b} takes {percent} against {a}; {_why_no_interval(found)}"
    if verdict["method"] == "stored" and verdict["ci95"][0] * verdict["ci95"][1] > 0:
        return (
            f"cannot tell: a {per} of {b} takes {percent} {low_high} against {a}: one run a side takes 99 % certainty"
        )
    return (
        f"cannot tell: a {per} of {b} takes {percent} {low_high} against {a}: neither apart from 0 nor within "
        f"±{found['margin']:.0%}"
    )


def _why_no_interval(found: Comparison) -> str:
    reasons = found["reasons"]
    return reasons.get(f"effects.{found['verdict']['of']}.ci95") or reasons["repeats.needed"]


def _percent(share: float) -> str:
    """With its sign: +9.4 %, -97.5 %."""
    size = abs(share) * 100
    return f"{'-' if share < 0 else '+'}{scaled.rough(size) if size >= 1000 else f'{size:.1f}'} %"


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
    return "" if interval is None else scaled.pair([each * 100 for each in interval])


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
        called = key.upper() if name == key.upper() else f"{key.upper()} = {name}"
        lines.append(Text(f"{called}: {what}; {side['measured_steps']} steps; {which}"))
    return lines


def _differences(found: Comparison) -> list[RenderableType]:
    if not found["differences"] and not found["unlike"]:
        return []
    rows = {name: pair for fields in found["unlike"].values() for name, pair in fields.items()}
    rows = {
        name: ["-" if value is None else str(value) for value in pair]
        for name, pair in {**rows, **found["differences"]}.items()
    }
    table = _table("differs", "A", "B")
    for name, pair in rows.items():
        table.add_row(*map(Text, (name, *pair)))
    lines = [Text(f"{name} differs: {pair[0]} in A, {pair[1]} in B") for name, pair in rows.items()]
    return [Fitting(table, Group(*lines))]


def _table(*titles: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        table.add_column(Text(title), justify="right" if title in right else "left", no_wrap=True)
    return table


def _rows(found: Comparison) -> list[tuple[str, str, str, str, str, str]]:
    """Of each effect: what it is called, A, B, the effect, its interval, the verdict."""
    rows = []
    for name, (called, shown) in _SHOWN.items():
        if name not in found["effects"]:
            continue
        row = found["effects"][name]
        if row is None:
            rows.append((called, "-", "-", "", "", ""))
            continue
        why = found["reasons"].get(f"effects.{name}.ci95", "")
        interval = _percents(row["ci95"]) or (TOO_FEW if why.startswith(TOO_FEW) else "-")
        interval = "counted" if row["method"] == "counted" else interval
        rows.append((called, shown(row["a"]), shown(row["b"]), _percent(row["effect"]), interval, row["verdict"]))
    if (share := found["effects"]["comm_exposed_share"]) is not None:
        interval = f"{_percents(share['ci95'])} pp" if share["ci95"] else "-"
        difference = f"{share['difference'] * 100:+.1f} pp"
        rows.append(("exposed comm.", f"{share['a']:.1%}", f"{share['b']:.1%}", difference, interval, ""))
    if (loss := found["loss"]) is not None:
        told = {"same": f"same ({_tolerance(loss)})", "differs": f"DIFFERS at step {loss['first_apart']}", None: ""}
        a, b = ("-" if loss[key] is None else f"{loss[key]:.6g}" for key in "ab")
        rows.append((f"loss, step {loss['step']}", a, b, "", "", told[loss["verdict"]]))
    return rows


def _tolerance(loss: Mapping[str, Any]) -> str:
    return f"to {scaled.number(loss['tolerance'])}"


def _effects(found: Comparison, *, spread: bool) -> Table:
    """With intervals or without: that of the verdict stands in its sentence."""
    titles = ("", "A", "B", "B / A - 1", *(("95 % interval",) if spread else ()), "verdict")
    table = _table(*titles, right=titles[1:-1])
    for called, a, b, effect, interval, word in _rows(found):
        cells = (called, a, b, effect, *((interval,) if spread else ()), word)
        table.add_row(*map(Text, cells), style="dim" if not effect and a == "-" else "")
    return table


def _in_words(found: Comparison) -> list[str]:
    """The same where there is no room for a table."""
    lines = []
    for called, a, b, effect, interval, word in _rows(found):
        more = [part for part in (effect, interval if interval != "-" else "", word) if part]
        lines.append(f"{called}: A {a}, B {b}{': ' if more else ''}{', '.join(more)}")
    return lines


def _causes(found: Comparison) -> list[RenderableType]:
    if (causes := found["causes"]) is None:
        return []
    few = TOO_FEW if found["reasons"].get("causes.ci95", "").startswith(TOO_FEW) else ""
    rows = [(row["cause"], *_times_of(row, few)) for row in causes["rows"]]
    whole = (causes["per"], *_times_of(causes["whole"], few))
    tables = []
    for spread in (True, False):
        titles = ("where the difference is", "A", "B", "B - A", *(("95 % interval",) if spread else ()))
        table = _table(*titles, right=titles[1:])
        for row in rows:
            table.add_row(*map(Text, row[: len(titles)]))
        table.add_section()
        table.add_row(*map(Text, whole[: len(titles)]))
        tables.append(table)
    lines = [Text(f"{cause}: A {a}, B {b}: {more} {spread}".rstrip()) for cause, a, b, more, spread in (*rows, whole)]
    return [Fitting(*tables, Group(*lines))]


def _times_of(row: Mapping[str, Any], few: str) -> tuple[str, str, str, str]:
    interval = few if row["ci95"] is None else scaled.times(row["ci95"])
    return scaled.time(row["a"]), scaled.time(row["b"]), scaled.signed_time(row["difference_seconds"]), interval


def _rest(found: Comparison) -> list[str]:
    repeats, method = found["repeats"], found["verdict"]["method"]
    lines = _unknown(found)
    line = f"repeats: {repeats['a']} and {repeats['b']}"
    if method is not None:
        source = f" ({repeats['source']})" if repeats["source"] else ""
        sd = f"sd of like runs {repeats['sd_between_runs']:.2%}, of the difference of two √2 of that"
        line += f"; {_GROUNDS[method]}{source}; {sd}"
    lines.append(line)
    if repeats["needed"] is None or repeats["needed"] > min(repeats["a"], repeats["b"]):
        count, why = repeats["needed"] or 3, "first, to know how much they differ among themselves"
        if repeats["needed"]:
            why = f"to find an effect of {repeats['for_effect']:.0%} with {repeats['power']:.0%} power"
        lines.append(f"make {count} each {why}, interleaved: {_sweep(found, count)}")
    for key in "ab":
        lines += [f"left out of {key.upper()}: {why}" for why in found[key]["left_out"].values()]
    return [*lines, *(f"note: {note}" for note in found["notes"])]


def _unknown(found: Comparison) -> list[str]:
    """What is null, once for all that has the same reason."""
    by_why: dict[str, list[str]] = {}
    for path, why in found["reasons"].items():
        if not path.endswith(".ci95"):
            by_why.setdefault(why, []).append(_FIELDS.get(path, path))
    return [f"not known: {' and '.join(names)}: {why}" for why, names in by_why.items()]


def _sweep(found: Comparison, count: int) -> str:
    strategies = dict.fromkeys((found["a"]["strategy"], found["b"]["strategy"]))
    if found["a"]["cell"] or found["b"]["cell"]:
        return f"the same scalelab sweep with --repeats {count}, which makes what is missing"
    return f"scalelab sweep --strategies {','.join(map(str, strategies))} --repeats {count} …"
