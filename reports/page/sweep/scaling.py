"""What more ranks buy: speed-up and efficiency, what was lost and to what, how far it is worth going."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ... import units
from ...spread import spread
from ..charts import label, stacked_bars
from ..section import Block, Chart, Column, Number, Paragraph, Section, Table
from ..words import leaf
from .cells import reason

PLACE = 30
ROLES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
Series = Mapping[str, Any]


def section(summary: Mapping[str, Any]) -> Section | None:
    if summary["series"] is None:
        told = Paragraph(f"Not told: {reason(summary, 'series')}.", "note")
        return Section("scaling", "What more ranks buy", [told])
    several = [each for each in summary["series"] if len(each["points"]) > 1]
    if not several:
        return None
    kind = {
        "strong": "Strong scaling: the same global batch on every number of ranks",
        "weak": "Weak scaling: the same micro-batch on every rank",
    }[summary["scaling"]]
    remarks = [Paragraph(f"{each['name']}: {note}.", "warning") for each in several for note in each["remarks"]]
    blocks: list[Block] = [Paragraph(f"{kind}."), *remarks, _speed_up(several), _table(several)]
    if any(each["losses"] for each in several):
        blocks += [_lost(several), _lost_table(several)]
    blocks += [_fits(several), *_affordable(several)]
    return Section("scaling", "What more ranks buy", blocks)


def _speed_up(several: Sequence[Series]) -> Chart:
    data: list[dict[str, Any]] = []
    for index, each in enumerate(several):
        data += _series(each, ROLES[index % len(ROLES)], SYMBOLS[index % len(SYMBOLS)])
    layout = {
        "xaxis": {"title": {"text": "ranks"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "speed-up over the smallest of the series"}, "rangemode": "tozero"},
    }
    return Chart("scaling", "Speed-up", _about(several), [*_ideals(several), *data], layout, 440)


def _ideals(several: Sequence[Series]) -> list[dict[str, Any]]:
    """A line for each number of ranks that a series begins at: what ideal is depends on it."""
    by_base: dict[int, dict[int, float]] = {}
    for each in several:
        for point in each["points"]:
            if point["ideal_speed_up"] is not None:
                by_base.setdefault(each["base_world_size"], {})[point["world_size"]] = point["ideal_speed_up"]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "ideal" if len(by_base) == 1 else f"ideal over {base} rank{'s' if base > 1 else ''}",
            "x": sorted(ideal),
            "y": [ideal[size] for size in sorted(ideal)],
            "line": {"dash": "dot", "width": 1},
            "meta": {"role": "quiet"},
            "hoverinfo": "skip",
        }
        for base, ideal in sorted(by_base.items())
    ]


def _about(several: Sequence[Series]) -> str:
    caption = (
        "Samples per second over those at the smallest number of ranks of the same series; bars are 95 % intervals "
        "between runs."
    )
    if len({each["base_world_size"] for each in several}) > 1:
        caption += " Series that begin at different numbers of ranks have an ideal line each: hold one against its own."
    froms = {each["extrapolated_from_world_size"] for each in several if each["curve"]}
    if froms:
        ends = ", ".join(str(each) for each in sorted(froms))
        caption += f" Lines: the fitted law; dashed beyond {ends} ranks, where nothing was measured (extrapolated)."
    if any(point["oversubscribed"] for each in several for point in each["points"]):
        caption += " Hollow: oversubscribed, more ranks than cores; in no fit."
    return caption


def _series(each: Series, role: str, symbol: str) -> list[dict[str, Any]]:
    data = []
    for hollow in (False, True):
        points = [point for point in each["points"] if point["oversubscribed"] == hollow and point["speed_up"]]
        if not points:
            continue
        low, high = [], []
        for point in points:
            mean, bounds = point["speed_up"]["mean"], point["speed_up"]["ci95"]
            low.append(mean - bounds[0] if bounds else 0)
            high.append(bounds[1] - mean if bounds else 0)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label(each["name"] + (", oversubscribed" if hollow else "")),
                "x": [point["world_size"] for point in points],
                "y": [point["speed_up"]["mean"] for point in points],
                "error_y": {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "width": 4},
                "marker": {"symbol": symbol},
                "meta": {"role": role, "hollow": hollow},
                "hovertemplate": "%{x} ranks: %{y:.4~g}<extra></extra>",
            }
        )
    curve = each["curve"] or []
    inside = [row for row in curve if not row["extrapolated"]]
    beyond = [*inside[-1:], *(row for row in curve if row["extrapolated"])]
    for rows, dash, what in ((inside, "solid", "fitted"), (beyond, "dash", "extrapolated")):
        if len(rows) > 1:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": label(f"{each['name']}, {what}"),
                    "showlegend": False,
                    "x": [row["world_size"] for row in rows],
                    "y": [row["speed_up"] for row in rows],
                    "line": {"dash": dash, "width": 1.4},
                    "meta": {"role": role},
                    "hovertemplate": f"%{{x}} ranks, {what}: %{{y:.4~g}}<extra></extra>",
                }
            )
    return data


def _table(several: Sequence[Series]) -> Table:
    columns = [
        Column("series", "series", numeric=False),
        Column("ranks", "world_size"),
        Column("samples/s", "samples_per_second"),
        Column("speed-up", "speed_up"),
        Column("efficiency", "efficiency"),
        Column("95 % interval", "efficiency_ci95", numeric=False),
        Column("cost of a sample", "cost_ratio"),
        Column("exposed comm.", "comm_share"),
        Column("note", "note", numeric=False),
    ]
    rows = []
    for each in several:
        for point in each["points"]:
            means = {
                name: None if point[name] is None else point[name]["mean"]
                for name in ("samples_per_second", "speed_up", "efficiency", "cost_ratio", "comm_share")
            }
            rows.append(
                [
                    each["name"],
                    Number(str(point["world_size"]), point["world_size"]),
                    Number(units.figures(means["samples_per_second"]), means["samples_per_second"]),
                    Number(units.figures(means["speed_up"]), means["speed_up"]),
                    Number(
                        units.percent(means["efficiency"]),
                        means["efficiency"],
                        None if point["above_ideal"] else means["efficiency"],  # a full bar would be 100 %
                    ),
                    spread(point, "efficiency", lambda ends: units.interval(ends, 100, "%")),
                    Number(f"x {units.figures(means['cost_ratio'])}", means["cost_ratio"]),
                    Number(units.percent(means["comm_share"]), means["comm_share"]),
                    _note(point),
                ]
            )
    return Table("scaling", "Speed-up and efficiency over the smallest number of ranks of each series", columns, rows)


def _note(point: Mapping[str, Any]) -> str:
    notes = ["oversubscribed"] if point["oversubscribed"] else []
    notes += ["above ideal: see the remark"] if point["above_ideal"] else []
    return "; ".join(notes)


def _lost(several: Sequence[Series]) -> Chart:
    rows = [(each, loss) for each in several for loss in each["losses"] or [] if loss["parts"] is not None]
    causes = list(dict.fromkeys(part["cause"] for _, loss in rows for part in loss["parts"]))
    bars = [f"{each['name']} {loss['from_world_size']}→{loss['to_world_size']}" for each, loss in rows]
    series = {
        cause: [
            next((part["share"] * 100 for part in loss["parts"] if part["cause"] == cause), 0.0) for _, loss in rows
        ]
        for cause in causes
    }
    caption = (
        "Percent of efficiency lost from one number of ranks to the next, by cause; the parts add up to the loss. What "
        "is left of 0 was won."
    )
    names = {cause: leaf(cause) for cause in causes}
    return stacked_bars(
        "lost", "Lost efficiency, by cause", caption, bars, series, axis="percent of efficiency", unit="%", names=names
    )


def _lost_table(several: Sequence[Series]) -> Table:
    columns = [
        Column("series", "series", numeric=False),
        Column("from", "from_world_size"),
        Column("to", "to_world_size"),
        Column("lost", "lost"),
        Column("to what", "parts", numeric=False),
    ]
    rows = []
    for each in several:
        for loss in each["losses"] or []:
            parts = sorted(loss["parts"] or [], key=lambda part: -abs(part["share"]))
            told = loss["reasons"].get("parts") or ", ".join(
                f"{leaf(part['cause'])} {units.percent(part['share'])}" for part in parts if abs(part["share"]) >= 0.001
            )
            rows.append(
                [
                    each["name"],
                    Number(str(loss["from_world_size"]), loss["from_world_size"]),
                    Number(str(loss["to_world_size"]), loss["to_world_size"]),
                    Number(units.percent(loss["lost"]), loss["lost"]),
                    told,
                ]
            )
    return Table("lost-efficiency", "Lost efficiency and its parts, which add up to it", columns, rows)


def _fits(several: Sequence[Series]) -> Table:
    columns = [
        Column("series", "series", numeric=False),
        Column("law", "law", numeric=False),
        Column("fitted", "fitted", numeric=False),
        Column("residual", "residual"),
        Column("knee, or why not", "knee", numeric=False),
    ]
    rows = []
    for each in several:
        for law, fit in each["fits"].items():
            if fit is None:
                rows.append([each["name"], law, "not fitted", Number(units.UNKNOWN, None), reason(each, f"fits.{law}")])
                continue
            told = "; ".join(
                f"{name.replace('_', ' ')} {units.figures(value['value'])} {_between(each, law, name, value)}".rstrip()
                for name, value in fit.items()
                if isinstance(value, Mapping) and "value" in value
            )
            rows.append(
                [
                    each["name"],
                    law,
                    told,
                    Number(units.percent(fit["residual"]), fit["residual"]),
                    _knee(each, law, fit),
                ]
            )
    return Table(
        "fits",
        "Laws fitted to the points that are not oversubscribed; residual is the root mean square of the relative error",
        columns,
        rows,
    )


def _between(each: Series, law: str, name: str, value: Mapping[str, Any]) -> str:
    """The interval of a law's parameter."""
    path = f"{name}.ci95"
    row = {name: value, "reasons": {path: each["reasons"].get(f"fits.{law}.{path}", "")}}
    return spread(row, name, units.interval)


def _knee(series: Series, law: str, fit: Mapping[str, Any]) -> str:
    """Where it is, or why there is none."""
    if "knee" not in fit:
        return "the law has none"
    if (knee := fit["knee"]) is None:
        return reason(series, f"fits.{law}.knee")
    where = f", extrapolated from {knee['from_world_size']}" if knee["extrapolated"] else ""
    return f"at {units.figures(knee['world_size'])} ranks {_open(knee['ci95'])}{where}"


def _open(bounds: Sequence[float | None] | None) -> str:
    """An interval whose end may not be known."""
    if bounds is None:
        return ""
    return f"[{', '.join('?' if each is None else units.figures(each) for each in bounds)}]"


def _affordable(several: Sequence[Series]) -> list[Block]:
    blocks: list[Block] = []
    for each in several:
        if (found := each["affordable"]) is None:
            told = f"{each['name']}: how far it is worth going is not known: {reason(each, 'affordable')}."
            blocks.append(Paragraph(told, "note"))
        elif found["world_size"] is None:
            told = f"{each['name']}: {found['asked']}: {reason(each, 'affordable.world_size')}."
            blocks.append(Paragraph(told))
        else:
            far = f", extrapolated from {found['from_world_size']}" if found["extrapolated"] else ""
            ranks = f"{found['world_size']} rank{'s' * (found['world_size'] != 1)}"
            told = f"{each['name']}: {found['asked']}: up to {ranks} {_open(found['ci95'])}{far}."
            blocks.append(Paragraph(told.replace(" .", ".")))
    return blocks
