"""What a sweep's charts draw is what its sweep-summary.json says."""

from __future__ import annotations

from pathlib import Path

import pytest
from scalelab.profiles.analysis.sweep import write_sweep_summary
from scalelab.reports.page.section import Chart
from scalelab.reports.page.sweep import cost, scaling

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
