"""A report as one self-contained HTML page: no network, every text inert, charts by plotly from JSON in the page.

The library is plotly.js's basic bundle (MIT, see plotly-LICENSE), inlined. The page's policy forbids every request.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import asdict
from typing import Any

import jinja2
import orjson
from markupsafe import Markup

from .section import Report, charts_of

_HERE = importlib.resources.files(__package__ or "")
LIBRARY = "plotly-basic.min.js"


def page(report: Report) -> str:
    """The whole page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    charts = [asdict(chart) for chart in charts_of(report)]
    return environment.from_string(_file("page.html.j2")).render(
        report=report,
        charts=data(charts) if charts else None,
        style=Markup(_file("page.css")),
        script=Markup(_file("page.js")),
        library=Markup(_file(LIBRARY)) if charts else None,
    )


def data(value: Any) -> Markup:
    """`value` as JSON that ends no script element and begins no comment, whatever texts it holds."""
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
