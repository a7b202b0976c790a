"""What `scalelab diagnose` prints of a diagnosis. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .units import size

_STYLES = {"healthy": "bold green", "cannot_tell": "bold yellow"}


def diagnosis_card(diagnosis: Mapping[str, Any]) -> RenderableType:
    """Verdict, Why, Next, What it would buy; then the other causes, and what could not be told."""
    verdict, findings = diagnosis["verdict"], diagnosis["findings"]
    first = next((row for row in findings if row["counts"]), None)
    parts: list[RenderableType] = [_verdict(verdict)]
    if first is not None:
        parts += _of(first)
    others = [row for row in findings if row is not first]
    if (verified := diagnosis.get("verification")) is not None:
        parts += [_title("What it bought"), *map(_line, _bought(verified))]
    if others:
        parts += [_title("Also"), Padding(_others(others), (0, 0, 0, 2))]
    if diagnosis.get("overlap"):
        parts += [_line(Text(f"Shares overlap: {diagnosis['overlap']}"))]
    if diagnosis["cannot_tell"]:
        parts.append(_title("Cannot tell"))
        parts += [
            _line(Text.assemble((row["label"], "bold"), f": lacks {row['lacks']}; rerun: {row['rerun']}"))
            for row in diagnosis["cannot_tell"]
        ]
    return Group(*parts)


def verdict_line(diagnosis: Mapping[str, Any]) -> str:
    """The verdict and what to do, in one line."""
    verdict = diagnosis["verdict"]
    first = next((row for row in diagnosis["findings"] if row["counts"]), None)
    if first is None:
        return f"diagnosis: {verdict['label']}: {verdict['says']}"
    share = "" if not verdict["severity_share"] else f", {verdict['severity_share']:.0%} of the step"
    return f"diagnosis: {verdict['label']}{share}; next: {first['next']['says']}"


def _verdict(verdict: Mapping[str, Any]) -> Text:
    text = Text.assemble(("Verdict  ", "bold"), (verdict["label"], _STYLES.get(verdict["label"], "bold red")))
    share = verdict["severity_share"]
    if share:
        text.append(f"  {share:.0%} of the step")
    elif verdict["headroom_seconds"] is None and verdict["says"]:
        text.append(f"  {verdict['says']}")
    if (usd := verdict["usd_per_million_samples"]) is not None:
        text.append(f", ${usd:.2f} per million samples at stake")
    return text


def _of(row: Mapping[str, Any]) -> list[RenderableType]:
    return [
        _title("Why"),
        *(_line(Text(f"- {each['says']}")) for each in row["evidence"]),
        _title("Next"),
        _line(Text(row["next"]["says"])),
        _title("What it would buy"),
        _line(Text(_buys(row))),
    ]


def _buys(row: Mapping[str, Any]) -> str:
    if row["headroom_seconds"] is None:
        return f"no time: {row['method']}"
    spread = "" if row["ci95"] is None else f" [{row['ci95'][0] * 1e3:.1f}, {row['ci95'][1] * 1e3:.1f}]"
    return f"{row['headroom_seconds'] * 1e3:.1f}{spread} ms a step, {row['severity_share']:.0%} of it ({row['method']})"


def _bought(row: Mapping[str, Any]) -> list[Text]:
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in row["options"].items())
    share, bounds, less = row["saved_share"], row["ci95"], "less"
    if share < 0:
        share, bounds, less = -share, None if bounds is None else [-bounds[1], -bounds[0]], "more"
    spread = "" if bounds is None else f" [{bounds[0]:.0%}, {bounds[1]:.0%}]"
    style = "bold green" if row["verdict"] == "faster" else "bold yellow"
    amount = (
        f"{share:.0%}{spread} {less} time a {row['per']} ({row['counts']}), {row['rounds']} runs of each side, in turn"
    )
    lines = [Text.assemble((row["verdict"], style), f" with {options}: {amount}")]
    if (why := row["reasons"].get("verdict")) is not None:
        lines.append(Text(why))
    if row["cause_share"] is not None:
        ci95 = row["cause_ci95"]
        spread = "" if ci95 is None else f" [{ci95[0]:.0%}, {ci95[1]:.0%}]"
        lines.append(
            Text(f"removing {row['label']} altogether was said to buy {row['cause_share']:.0%}{spread} of a step")
        )
    if row["verdict"] == "cannot tell" and why is None:
        more = "more rounds" if row["needed"] is None else f"--rounds {row['needed']}"
        if row["needed"] is None or row["needed"] > row["rounds"]:
            lines.append(Text(f"{more} would tell an effect of 5 %"))
    if row["label"] == "memory_pressure" and (memory := row.get("peak_memory")) is not None:
        whole = "the fullest rank's process" if memory["of"] == "rss_peak_bytes" else "the fullest card"
        lines.append(Text(f"{whole} held {size(memory['before_bytes'])}, and {size(memory['after_bytes'])} with it"))
    if (learns := row["learns"]) is not None:
        lines.append(Text(_learns(learns)))
    elif row["decides_learning"]:
        lines.append(Text(f"how well it learns is not known: {row['reasons']['learns']}"))
    return lines


def _learns(row: Mapping[str, Any]) -> str:
    spread = "" if row["ci95"] is None else f" [{row['ci95'][0]:+.1%}, {row['ci95'][1]:+.1%}]"
    how = (
        "whether it learns as well cannot be told" if row["verdict"] == "cannot tell" else f"it learns {row['verdict']}"
    )
    return (
        f"{how}: loss {row['loss_after']:.4g} against {row['loss_before']:.4g} after {row['samples']} samples, "
        f"{row['higher_share']:+.1%}{spread}"
    )


def _others(rows: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column()
    for row in rows:
        share = "-" if row["severity_share"] is None else f"{row['severity_share']:.0%}"
        table.add_row(row["label"], share, Text.assemble(_counted(row), (row["next"]["says"], "dim")))
    return table


def _counted(row: Mapping[str, Any]) -> str:
    """Which part of a cause is told of others."""
    if not row.get("counted_under"):
        return ""
    return f"of {row['alone_share']:.0%} measured, the rest counted under {' and '.join(row['counted_under'])}; "


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _line(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 2))
