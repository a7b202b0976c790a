"""Sweeps and comparisons on a terminal: no word is cut, however narrow; no exponent; units that fit."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.sweep import summarise_sweep
from scalelab.reports import scaled
from scalelab.reports.console import Console
from scalelab.reports.sweep_results import sweep_results

from tests.support.sweep_example import SENDING, example_summary
from tests.support.sweeps import MadeSweep

ASKED: dict[str, float | None] = {"cost_ratio": None, "usd_per_million_samples": None}
EXPONENT = re.compile(r"\de[+-]?\d")


def shown(renderable: Any, width: int) -> str:
    console = Console(io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def summary_of(made: MadeSweep) -> dict[str, Any]:
    return summarise_sweep(made.write(), Given(), ASKED)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 250])
@pytest.mark.parametrize("factor", [1e-5, 1.0, 40.0, 1e4])
def test_a_sweep_is_whole_at_any_width(tmp_path: Path, width: int, factor: float) -> None:
    """Steps of microseconds to hours, with intervals, one that is too wide, and long names: every name and mark stands
    in one piece, and no number has an exponent."""
    made = MadeSweep(tmp_path / "sweep", repeats=2)
    made.cell("zero3", 1, [factor, 1.05 * factor], name="zero3-fp32-1rank", shares=SENDING, usd_per_gpu_hour=0.05)
    made.cell("zero3", 2, [0.3 * factor, 3 * factor], name="zero3-fp32-2ranks", shares=SENDING, usd_per_gpu_hour=0.05)
    text = shown(sweep_results(summary_of(made)), width)
    for word in ("zero3-fp32-1rank", "zero3-fp32-2ranks", "time/cost front", "efficiency", "too few runs to say"):
        assert word in " ".join(text.split()), word
    assert "…" not in text
    assert not EXPONENT.search(text)
    assert all(len(line) <= width for line in text.splitlines())


def test_units_scale() -> None:
    """Four figures, in the unit that fits."""
    times = [scaled.time(each) for each in (0.0, 2.5e-5, 0.1703, 0.99999, 10.04, 192.0, 7200.0)]
    assert times == ["0 µs", "25 µs", "170.3 ms", "1 s", "10.04 s", "3.2 min", "2 h"]
    numbers = [scaled.number(each) for each in (0, 1.2e-7, 0.2956, 8.757, 25440.0, 146_940_796, 3e16)]
    assert numbers == ["0", "0.00000012", "0.2956", "8.757", "25,440", "147 M", "30,000 T"]
    assert scaled.times([0.9, 1.25]) == "[0.9, 1.25] s"


def test_what_cells_have_in_common_is_said_once(tmp_path: Path) -> None:
    """Nothing was made yet: a line for all cells, and no table."""
    made = MadeSweep(tmp_path / "sweep")
    for world in (1, 2, 4, 8, 16):
        made.cell("ddp", world)
    text = shown(sweep_results(summary_of(made)), 120)
    assert "5 cells: not run yet (ddp-fp32-x1, ddp-fp32-x2, ddp-fp32-x4 and 2 more)" in text
    assert len(text.splitlines()) < 6


def test_the_cause_of_most_comes_first_whatever_its_sign(tmp_path: Path) -> None:
    """Half the compute and more waiting: what was won is named before what was lost."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 1, [4.0], shares={"forward": 0.9, "data": 0.1})
    made.cell("ddp", 2, [1.0], shares={"forward": 0.4, "data": 0.3, "unattributed": 0.2, "comm.waiting": 0.1})
    (line,) = (each for each in shown(sweep_results(summary_of(made)), 200).splitlines() if "1 to 2 ranks" in each)
    assert "efficiency 100.0% won: compute -140.0%" in line


def test_laws_are_named_where_they_are_not_fitted() -> None:
    """Two sizes have Amdahl's law; and a cost that is never met is no limit, not something unknown."""
    made = example_summary()
    text = " ".join(shown(sweep_results(made), 200).split())
    assert "no law is fitted" not in text
    assert "is not known: at most" not in text


def test_cells_whose_losses_were_not_checked_are_noted(tmp_path: Path) -> None:
    """They have figures, at the end of a sweep that was interrupted too: so that is said."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("zero1", 1, [1.0])
    assert any("losses of any cell were not checked" in note for note in summary_of(made)["notes"])
