"""What a sweep's charts draw is what its sweep-summary.json says."""

from __future__ import annotations

from pathlib import Path

import pytest
from scalelab.profiles.analysis.sweep import write_sweep_summary
from scalelab.reports.page.section import Chart
from scalelab.reports.page.sweep import cost

from tests.support.sweeps import MadeSweep


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
