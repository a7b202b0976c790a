"""What a sweep's charts draw is what its sweep-summary.json says."""

from __future__ import annotations

from pathlib import Path

import pytest
from scalelab.profiles.analysis.sweep import write_sweep_summary
from scalelab.reports.page.section import Chart, More, Number, Paragraph, Table
from scalelab.reports.page.sweep import about, cells, cost, scaling
from scalelab.reports.page.write import sweep_report

from tests.support.sweeps import MadeSweep

LINEAR = (1.0, 1.001)


def chart(section: object, name: str) -> Chart:
    blocks = getattr(section, "blocks")  # noqa: B009
    return next(each for each in blocks if isinstance(each, Chart) and each.name == name)


@pytest.mark.parametrize("price", [2.0, None])
def test_bars_of_cost_are_of_steps_and_events(tmp_path: Path, price: float | None) -> None:
    """A step of 1 s with 1 s of events after it: each cause is drawn at what it costs, and all of them at twice the
    cost of the step."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 1, [1.0], usd_per_gpu_hour=price, events=1.0)
    summary = write_sweep_summary(made.write())
    (cell,) = summary["cells"]
    field = "device_hours_per_million_samples" if price is None else "usd_per_million_samples"
    drawn = [each for series in chart(cost.section(summary), "cost").data for each in series["x"]]
    assert sorted(drawn) == pytest.approx(sorted(row[field] for row in cell["by_cause"]))
    assert sum(drawn) == pytest.approx(2 * cell[field]["mean"])


def test_cells_that_were_never_run_have_no_runs_and_no_parity(tmp_path: Path) -> None:
    """A sweep that was interrupted at once: no empty table of measured cells; a failed cell of ddp is no reference."""
    made = MadeSweep(tmp_path / "sweep", repeats=1)
    failed = made.cell("ddp", 1)
    made.attempt(failed, 0, None, 7, "out of memory")
    made.cell("ddp", 2)
    interrupted = made.cell("zero1", 1)
    made.attempt(interrupted, 0, None, 130, "ended by SIGINT, at once")
    summary = write_sweep_summary(made.write())
    assert (summary["runs"]["failed"], summary["runs"]["missing"]) == (1, 2)
    assert [cell["parity"]["state"] for cell in summary["cells"]] == ["not checked"] * 3
    tables = [each for each in cells.section(summary).blocks if isinstance(each, Table)]
    assert [each.name for each in tables] == ["cells-without"]
    (runs,) = {row[2].text for row in tables[0].rows if isinstance(row[2], Number)}
    assert runs == "0"


def test_an_efficiency_above_what_ranks_can_give_is_remarked(tmp_path: Path) -> None:
    """15 times the speed on 2 ranks: a warning, and no bar that looks like 100 %. Of 110 % nothing is said."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 1, [15.4])
    made.cell("ddp", 2, [1.0])
    made.cell("zero1", 1, [2.2])
    made.cell("zero1", 2, [1.0])
    summary = write_sweep_summary(made.write())
    section = scaling.section(summary)
    assert section is not None
    remarks = [each.text for each in section.blocks if isinstance(each, Paragraph) and each.tone == "warning"]
    assert len(remarks) == 1
    assert "ddp fp32: an efficiency of 770% on 2 ranks" in remarks[0]
    (table,) = (each for each in section.blocks if isinstance(each, Table) and each.name == "scaling")
    bars = [row[4].share for row in table.rows if isinstance(row[4], Number)]
    assert bars == [1.0, None, 1.0, pytest.approx(1.1)]


def test_each_cell_shows_what_its_runs_were_diagnosed_with(tmp_path: Path) -> None:
    made = MadeSweep(tmp_path / "sweep", repeats=3)
    made.cell("ddp", 1, [1.0, 1.1, 1.2])
    for path, label in zip(made.folder.path.glob("2026*"), ("healthy", *("cpu_contention",) * 2), strict=True):
        (path / "diagnosis.json").write_text(f'{{"verdict": {{"label": "{label}"}}}}')
    made.cell("zero1", 1, [1.0])
    summary = write_sweep_summary(made.write())
    assert [cell["diagnosis"] for cell in summary["cells"]] == [["cpu_contention", "healthy"], None]
    assert summary["cells"][1]["reasons"]["diagnosis"]
    (table,) = (each for each in cells.section(summary).blocks if isinstance(each, Table) and each.name == "cells")
    assert "cpu_contention, healthy" in table.rows[0]


def test_the_page_is_named_after_what_it_compares_and_the_front_is_labelled(tmp_path: Path) -> None:
    """Model and strategies, not a hash; names beside the dots of the front; many reasons are folded away."""
    made = MadeSweep(tmp_path / "sweep")
    for strategy, world, seconds in (("ddp", 1, 1.0), ("ddp", 2, 0.6), ("zero3", 2, 0.7)):
        made.cell(strategy, world, [seconds])
    for index, cell in enumerate(made.cells):
        made.cells[index] = cell.model_copy(update={"config": {**cell.config, "model": "models/mine.py"}})
    summary = write_sweep_summary(made.write())
    report = sweep_report(summary)
    assert (report.title, report.subtitle[:20]) == ("mine.py: ddp, zero3", "sweep sweep-0123abcd")
    others, front, *_ = chart(cost.section(summary), "pareto").data
    assert (front["mode"], front["text"]) == ("lines+markers+text", ["ddp-fp32-x2", "ddp-fp32-x1"])
    assert front["textposition"] == ["top right", "top left"]
    assert others["mode"] == "markers"
    folded = about.section({**summary, "reasons": {str(index): str(index) for index in range(9)}})
    assert isinstance(folded.blocks[-1], More)


def test_linear_scaling_is_on_the_ideal_line_of_its_base(tmp_path: Path) -> None:
    """One series from 1 rank and one from 2, both linear: each point is on the line that begins where it does."""
    made = MadeSweep(tmp_path / "sweep", repeats=2)
    for strategy, worlds in (("ddp", (1, 2, 4)), ("zero3", (2, 4))):
        for world in worlds:
            made.cell(strategy, world, [each / world for each in LINEAR])
    data = chart(scaling.section(write_sweep_summary(made.write())), "scaling").data
    ideal = {each["name"]: dict(zip(each["x"], each["y"], strict=True)) for each in data if "ideal" in each["name"]}
    assert ideal == {"ideal over 1 rank": {1: 1, 2: 2, 4: 4}, "ideal over 2 ranks": {2: 1, 4: 2}}
    measured = [each for each in data if each["mode"] == "markers"]
    assert len(measured) == 2
    for each in measured:
        line = ideal[f"ideal over {each['x'][0]} rank{'s' if each['x'][0] > 1 else ''}"]
        assert each["y"] == pytest.approx([line[world] for world in each["x"]])
