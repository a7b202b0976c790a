"""The tables of a report as CSV, one file each: RFC 4180, UTF-8, numbers in SI units, unknown ones empty."""

from __future__ import annotations

import csv
import io

from .section import Cell, Name, Number, Table

# A cell that begins so is a formula to a spreadsheet (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(table: Table) -> str:
    """`table` with one line of headings."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([_text(column.name) for column in table.columns])
    writer.writerows([[_cell(cell) for cell in row] for row in table.rows])
    return out.getvalue()


def _cell(cell: Cell) -> str:
    if isinstance(cell, Number):
        return "" if cell.value is None else repr(cell.value)
    return _text(cell.whole if isinstance(cell, Name) else cell)


def _text(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
