"""A part of a report as plain structure, from which the HTML page and its Markdown twin are both made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class Number:
    """A number as it is shown and, for machines, as it is: in SI units, null where it is not known. `share`, 0 to 1,
    draws a bar beside it."""

    text: str
    value: float | int | None
    share: float | None = None


@dataclass(frozen=True)
class Name:
    """A name that can be longer than what is read of it: the begin is shown, `whole` is there to look at and in CSV."""

    whole: str

    @property
    def text(self) -> str:
        return self.whole if len(self.whole) <= NAME_SHOWN else f"{self.whole[: NAME_SHOWN - 1]}…"


Cell = str | Number | Name
NAME_SHOWN = 64
UNKNOWN = "–"


@dataclass(frozen=True)
class Column:
    """`title` heads it on the page, `name` in CSV, with the unit of `Number.value` in it."""

    title: str
    name: str
    numeric: bool = True


@dataclass(frozen=True)
class Paragraph:
    text: str
    tone: Literal["plain", "note", "warning"] = "plain"
    block: ClassVar = "paragraph"


@dataclass(frozen=True)
class Verbatim:
    """Text whose line breaks count."""

    text: str
    block: ClassVar = "verbatim"


@dataclass(frozen=True)
class Figures:
    """Key figures: a label, a value, and what must be known to read it."""

    rows: Sequence[tuple[str, str, str]]
    block: ClassVar = "figures"


@dataclass(frozen=True)
class Table:
    """`name` is unique in a report, and that of its CSV file. Rows whose index is in `dim` are of less weight, those in
    `total` sum up."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    total: frozenset[int] = frozenset()
    dim: frozenset[int] = frozenset()
    block: ClassVar = "table"


@dataclass(frozen=True)
class Chart:
    """A picture by plotly. `caption` says in words what it shows and what was left out: what a reader without pictures
    has of it, beside the tables. `name` is unique in a report."""

    name: str
    title: str
    caption: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 320
    block: ClassVar = "chart"


@dataclass(frozen=True)
class More:
    """Blocks that a reader opens."""

    title: str
    blocks: Sequence[Block]
    block: ClassVar = "more"


Block = Paragraph | Verbatim | Figures | Table | Chart | More


@dataclass(frozen=True)
class Section:
    """`name` is its place in addresses, `short` its title where there is little room. A `box` stands out; `tone` is its
    colour."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    box: bool = False
    tone: Literal["plain", "good", "warning", "bad"] = "plain"
    short: str = ""


@dataclass(frozen=True)
class Report:
    title: str
    subtitle: str
    sections: Sequence[Section]
    footer: str


def blocks_of(report: Report) -> list[Block]:
    """Every block, those inside others too."""
    return [found for section in report.sections for block in section.blocks for found in _within(block)]


def _within(block: Block) -> list[Block]:
    inner = block.blocks if isinstance(block, More) else []
    return [block, *(found for each in inner for found in _within(each))]


def tables_of(report: Report) -> list[Table]:
    return [block for block in blocks_of(report) if isinstance(block, Table)]


def charts_of(report: Report) -> list[Chart]:
    return [block for block in blocks_of(report) if isinstance(block, Chart)]
