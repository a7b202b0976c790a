"""What `scalelab compare` prints: whole at any width, with A and B told apart, and nothing that its runs do not say."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from scalelab.launch.cli import run_command
from scalelab.launch.errors import Exit
from scalelab.reports.compare_table import compare_table, verdict_line

from tests.launch.test_compare import RATES, made, side, told


def test_names_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Markup, escapes and control characters of a name do nothing in the terminal."""
    name = "[red]x[/red]\x1b[31m</script>\u202e"
    a, b = (made(tmp_path, seconds, facts={"name": f"{name}{seconds}"}) for seconds in (1.0, 2.0))
    assert run_command(["compare", str(a), str(b)]) == Exit.OK
    text = capsys.readouterr().out
    assert "[red]x[/red]</script>" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("width", [50, 80, 200])
@pytest.mark.parametrize("factor", [1e-4, 1.0, 300.0])
def test_a_comparison_is_whole_at_any_width(
    width: int, factor: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns are A and B with a legend; units scale; no word is cut, no field's raw name is shown."""
    a = side(tmp_path / "a", factor, strategy="zero3", facts={"name": "zero3-fp32-2ranks-r1"})
    b = side(tmp_path / "b", 1.3 * factor, strategy="zero3", facts={"name": "zero3-fp32-2ranks-r2"})
    console = Console(width=width, record=True, file=io.StringIO(), highlight=False)
    console.print(compare_table(told(capsys, a, b)))
    text = console.export_text()
    assert "A = zero3-fp32-2ranks-r1" in text
    assert "B = zero3-fp32-2ranks-r2" in text
    assert {1e-4: "100 µs", 1.0: "1 s", 300.0: "5 min"}[factor] in text
    assert not re.search(r"\de[+-]\d|…$|repeats\.", text.replace("--repeats 3 …", ""), re.MULTILINE)
    assert "how many runs it takes and how much like runs differ" in " ".join(text.split())


def test_sides_of_one_name_are_a_and_b(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(compare_table(told(capsys, str(made(tmp_path, 1.0)), str(made(tmp_path, 2.0)))))
    text = console.export_text()
    assert "A = A" not in text
    assert "A: tiny" in text


def test_an_interval_of_orders_of_magnitude_is_too_few_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two runs a side that differ by a factor of 10: null with the reason, also for where the difference is."""
    found = told(capsys, side(tmp_path / "a", 1.0, 10.0), side(tmp_path / "b", 2.0, 9.0))
    for path in ("effects.step_seconds", "effects.device_hours_per_million_samples"):
        assert found["effects"][path.split(".")[1]]["ci95"] is None
        assert found["reasons"][f"{path}.ci95"].startswith("too few runs to say")
    assert found["causes"]["whole"]["ci95"] is None
    assert found["reasons"]["causes.ci95"].startswith("too few runs to say")
    assert "too few runs to say" in verdict_line(found)
    apart = told(capsys, side(tmp_path / "c", 1.0, 1.01), side(tmp_path / "d", 900.0, 1000.0))
    assert apart["verdict"]["word"] == "slower"
    assert apart["effects"]["step_seconds"]["ci95"]


def test_a_finished_run_that_has_lost_records_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four steps of thirty: compared, and warned of."""
    a, b = made(tmp_path, 1.0, steps=4), made(tmp_path, 1.1, steps=30)
    notes = told(capsys, str(a), str(b))["notes"]
    assert [note for note in notes if "were lost" in note] == [
        f"{b.name}: its records hold 4 of 30 measured steps, although it finished: some were lost"
    ]


def test_the_spread_between_like_runs_is_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of them differ by √2 of it; a verdict of one run a side takes 99 %, and says so beside its 95 %."""
    found = told(capsys, str(made(tmp_path, 1.0, spread=RATES)), str(made(tmp_path, 1.5, spread=RATES)))
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(compare_table(found))
    text = console.export_text()
    assert f"sd of like runs {found['repeats']['sd_between_runs']:.2%}, of the difference of two √2 of that" in text
    assert "intervals are of 95 %, the verdict takes 99 %" in text
