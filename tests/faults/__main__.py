"""`make faults`: every row of docs/faults.md, by the tests that show it, with the times that were seen."""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Row:
    """A row of the matrix. `waits` names what it needs that is not there yet; in parentheses, for a part of it."""

    number: int
    fault: str
    waits: str
    outcomes: list[str] = field(default_factory=list)
    detected: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    @property
    def applicable(self) -> bool:
        return not self.waits or self.waits.startswith("(")

    @property
    def passed(self) -> bool:
        return "passed" in self.outcomes and "failed" not in self.outcomes


def rows() -> dict[int, Row]:
    """The rows of docs/faults.md by number."""
    found = {}
    for line in (ROOT / "docs" / "faults.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 7 and cells[1].isdigit():
            number = int(cells[1])
            found[number] = Row(number, cells[2].replace("\\|", "|"), waits=cells[5])
    return found


class Collector:
    """Sorts the outcomes of marked tests by row."""

    def __init__(self, matrix: dict[int, Row]) -> None:
        self._matrix = matrix
        self._rows_of: defaultdict[str, set[int]] = defaultdict(set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("fault"):
                self._rows_of[item.nodeid] |= set(mark.args)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        times = dict(report.user_properties)
        for number in self._rows_of[report.nodeid]:
            row = self._matrix[number]
            row.outcomes.append(report.outcome)
            for name, seen in (("detected_seconds", row.detected), ("ended_seconds", row.ended)):
                if isinstance(times.get(name), float):
                    seen.append(times[name])  # pyright: ignore[reportArgumentType]


def main() -> int:
    # Before torch is imported: ranks share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    matrix = rows()
    arguments = ["-m", "fault", "-q", "--no-header", "-p", "no:cacheprovider", str(ROOT / "tests"), *sys.argv[1:]]
    code = pytest.main(arguments, plugins=[Collector(matrix)])
    print(f"\n{'row':>4}  {'tests':>18}  {'detected s':>12}  {'gone s':>12}  fault")
    for row in matrix.values():
        tests = f"{row.outcomes.count('passed')}/{len(row.outcomes)}" if row.outcomes else "-"
        if skipped := row.outcomes.count("skipped"):
            tests += f" ({skipped} skipped)"
        note = f"  [waits for {row.waits.strip('()')}]" if row.waits else ""
        state = "" if row.passed or not row.applicable else "  << NOT SHOWN"
        times = f"{_span(row.detected):>12}  {_span(row.ended):>12}"
        print(f"{row.number:>4}  {tests:>18}  {times}  {row.fault}{note}{state}")
    applicable = [row for row in matrix.values() if row.applicable]
    passed = sum(row.passed for row in applicable)
    waiting = ", ".join(str(row.number) for row in matrix.values() if not row.applicable)
    print(f"\n{passed} rows passed / {len(applicable)} rows applicable on CPU; waiting: {waiting}")
    return int(code != 0 or passed < len(applicable))


def _span(values: list[float]) -> str:
    return f"{min(values):.2f}-{max(values):.2f}" if values else ""


if __name__ == "__main__":
    sys.exit(main())
