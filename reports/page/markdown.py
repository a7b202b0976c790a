"""A report as Markdown: the words, figures and tables of the page; shares as bars of text."""

from __future__ import annotations

import re

from .section import Block, Cell, Chart, Figures, More, Name, Number, Paragraph, Report, Section, Table, Verbatim

BAR = 20
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!]|^[-+](?=\s))")
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")  # would begin a list
# What GitHub makes a link of by itself, escaped or not. A comment parts it, and is not in what a reader copies.
_AUTOLINK = re.compile(r"(?i)\b(https?|ftp|mailto|xmpp|www)(?=:|\.)")


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [f"# {escape(report.title)}", escape(report.subtitle)]
    for section in report.sections:
        parts += _section(section)
    return "\n\n".join([*parts, "---", escape(report.footer)]) + "\n"


def escape(text: str) -> str:
    """`text` as itself: no markup, no HTML, no link, no line break."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _NUMBERED.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", line))
    return _AUTOLINK.sub(r"\1<!-- -->", line)


def _section(section: Section) -> list[str]:
    parts = [f"## {escape(section.title)}", *(part for block in section.blocks for part in _block(block))]
    if not section.box:
        return parts
    return [parts[0], "\n>\n".join(quoted(part) for part in parts[1:])]


def quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _block(block: Block) -> list[str]:
    match block:
        case Paragraph(text, tone):
            return [f"**{escape(text)}**" if tone == "warning" else escape(text)]
        case Verbatim(text):
            return [_fenced(text)]
        case Figures(rows):
            return ["\n".join(_figure(*row) for row in rows)]
        case Table():
            return _table(block)
        case Chart():
            return [f"*{escape(block.title)}: {escape(block.caption)} (drawn in report.html)*"]
        case More(title, blocks):
            return [f"### {escape(title)}", *(part for each in blocks for part in _block(each))]


def _fenced(text: str) -> str:
    """A block of code whose fence is longer than any in `text`."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _figure(label: str, value: str, note: str) -> str:
    return f"- {escape(label)}: **{escape(value)}**" + (f" ({escape(note)})" if note else "")


def _table(table: Table) -> list[str]:
    heads = [escape(column.title) for column in table.columns]
    marks = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows)]
    return [f"**{escape(table.caption)}**", "\n".join(lines)]


def _cell(cell: Cell) -> str:
    if isinstance(cell, Number):
        bar = "" if cell.share is None else f" {'█' * round(max(0.0, min(1.0, cell.share)) * BAR)}".rstrip()
        return f"{escape(cell.text)}{bar}"
    return escape(cell.text if isinstance(cell, Name) else cell)
