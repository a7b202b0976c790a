"""The page on faults and the tests agree."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.__main__ import rows

ROOT = Path(__file__).parents[2]


def test_every_row_that_does_not_wait_has_a_test() -> None:
    """Rows are numbered without a gap; a row that waits for nothing is marked on a test somewhere."""
    matrix = rows()
    assert list(matrix) == list(range(1, 70))
    marked: set[int] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for arguments in re.findall(r"mark\.fault\(([^)]*)\)", path.read_text()):
            marked |= {int(number) for number in arguments.split(",")}
    assert {number for number, row in matrix.items() if row.applicable} - marked == set()
    assert marked <= set(matrix)
