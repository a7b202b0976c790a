"""Kinds of charts, as plotly figures without colours: those come from the page, by the name of a series' role, so that
they fit light and dark. Roles and their colours, told apart by colour-blind readers too, are in page.js."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .section import Chart

Series = Mapping[str, Any]


def label(text: str) -> str:
    """`text` as plotly shows it: as itself, not as markup, and at most 40 characters of it, its end among them: names
    differ there as often as at their begin."""
    short = text if len(text) <= 40 else f"{text[:19]}…{text[-20:]}"
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def stacked_bars(
    name: str,
    title: str,
    caption: str,
    bars: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    axis: str,
    unit: str = "ms",
    names: Mapping[str, str] | None = None,
) -> Chart:
    """A bar for each of `bars`, lying, made of `series` by role; `names` are the roles' in the legend."""
    names, places = names or {}, _apart([label(bar) for bar in bars])
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label(names.get(role, role)),
            "y": places,
            "x": list(values),
            "meta": {"role": role},
            "hovertemplate": f"%{{y}}: {label(names.get(role, role))} %{{x:.4~g}} {unit}<extra></extra>",
        }
        for role, values in series.items()
    ]
    layout = {
        "barmode": "relative",
        "xaxis": {"title": {"text": axis}},
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
        "bargap": 0.25,
    }
    return Chart(name, title, caption, data, layout, height=150 + 26 * len(bars))


def _apart(labels: Sequence[str]) -> list[str]:
    """`labels` with a number where several are alike: plotly would put their bars on each other."""
    return [
        text if labels.index(text) == place else f"{text} ({labels[: place + 1].count(text)})"
        for place, text in enumerate(labels)
    ]


def line(name: str, values: Sequence[Any], over: Sequence[Any], role: str, *, fill: bool = False, **more: Any) -> dict:
    """One line; filled, it closes the area down to the line before it."""
    drawn = {"fill": "tonexty"} if fill else {}
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label(name),
        "x": list(over),
        "y": list(values),
        "meta": {"role": role},
        **drawn,
        **more,
    }


def lines(
    name: str,
    title: str,
    caption: str,
    data: Sequence[dict[str, Any]],
    *,
    x: str,
    y: str,
    height: int = 320,
    **layout: Any,
) -> Chart:
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, "rangemode": "tozero"}}
    return Chart(name, title, caption, data, {**axes, **layout}, height)


def stacked_areas(
    name: str, title: str, caption: str, over: Sequence[float], series: Mapping[str, Sequence[float]], *, x: str, y: str
) -> Chart:
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label(role),
            "x": list(over),
            "y": list(values),
            "stackgroup": "all",
            "line": {"width": 0.8, "shape": "hv"},
            "meta": {"role": role, "area": True},
        }
        for role, values in series.items()
    ]
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, "rangemode": "tozero"}}
    return Chart(name, title, caption, data, {**axes, "hovermode": "x unified"}, height=380)
