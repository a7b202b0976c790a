"""What `scalelab diagnose` prints of a diagnosis. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .diagnosis_words import beside, bought, buys, costs, first_of, lacking, overlapping, subject

_STYLES = {"healthy": "bold green", "cannot_tell": "bold yellow"}


def diagnosis_card(diagnosis: Mapping[str, Any]) -> RenderableType:
    """Verdict, Why, Next, What it would buy; then the other causes, and what could not be told."""
    verdict, first = diagnosis["verdict"], first_of(diagnosis)
    parts: list[RenderableType] = [*_verdict(verdict)]
    if first is not None:
        parts += _of(first, verdict["step_seconds"])
    others = [row for row in diagnosis["findings"] if row is not first]
    if (verified := diagnosis.get("verification")) is not None:
        parts += [_title("What it bought"), *map(_line, _bought(verified, verdict["label"]))]
    if others:
        parts += [_title("Also"), Padding(_others(others), (0, 0, 0, 2))]
    parts += [_line(Text(each)) for each in overlapping(diagnosis)]
    if diagnosis["cannot_tell"]:
        parts.append(_title("Cannot tell"))
        parts += [_line(Text.assemble((subject(row), "bold"), f": {lacking(row)}")) for row in diagnosis["cannot_tell"]]
    return Group(*parts)


def verdict_line(diagnosis: Mapping[str, Any]) -> str:
    """The verdict and what to do, in one line."""
    verdict, first = diagnosis["verdict"], first_of(diagnosis)
    begin = ": ".join(["diagnosis", *([verdict["ended"]] if verdict.get("ended") else []), verdict["label"]])
    if first is None:
        return f"{begin}: {verdict['says']}"
    share = "" if not verdict["severity_share"] else f", {verdict['severity_share']:.0%} of the step"
    says = f"; {verdict['says']}" if verdict["says"] else ""
    return f"{begin}{share}{says}; next: {first['next']['says']}"


def _verdict(verdict: Mapping[str, Any]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if verdict.get("ended"):
        lines.append(Text(verdict["ended"], style="bold yellow"))
    text = Text.assemble(("Verdict  ", "bold"), (verdict["label"], _STYLES.get(verdict["label"], "bold red")))
    told = costs(verdict)
    if told:
        text.append(f"  {told}")
    elif verdict["says"]:
        text.append(f"  {verdict['says']}")
    lines.append(text)
    if told and verdict["says"]:
        lines.append(_line(Text(verdict["says"], style="yellow")))
    return lines


def _of(row: Mapping[str, Any], step_seconds: float) -> list[RenderableType]:
    return [
        _title("Why"),
        *(_line(Text(f"- {each['says']}")) for each in row["evidence"]),
        _title("Next"),
        _line(Text(row["next"]["says"])),
        _title("What it would buy"),
        _line(Text(buys(row, step_seconds))),
    ]


def _bought(row: Mapping[str, Any], label: str) -> list[Text]:
    style = "bold green" if row["verdict"] == "faster" else "bold yellow"
    amount, *rest = bought(row, label)
    return [Text.assemble((row["verdict"], style), amount), *map(Text, rest)]


def _others(rows: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column()
    for row in rows:
        label, share, says = beside(row)
        table.add_row(label, share, Text(says, style="dim"))
    return table


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _line(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 2))
