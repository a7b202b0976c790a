"""Scaling: what is lost sums to its causes, a planted law is found again, and nothing is told that runs cannot tell."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.sweep import summarise_sweep
from scalelab.profiles.analysis.sweep.fits import AMDAHL_TERMS, USL_TERMS, affordable, coherency, contention, fit, knee
from scalelab.profiles.analysis.sweep.lost import UNTOLD
from scalelab.reports.page.write import write_sweep_report

from ..support.sweeps import COMM, SHARES, MadeSweep

WORLDS = (1, 2, 4, 8)
ASKED: dict[str, float | None] = {"cost_ratio": None, "usd_per_million_samples": None}


def usl(world: int, a: float, b: float = 0.0) -> float:
    """Seconds of a step of one second at one rank, by the law."""
    return (1 + a * (world - 1) + b * world * (world - 1)) / world


def series_of(made: MadeSweep, **asked: float) -> dict[str, Any]:
    (found,) = summarise_sweep(made.write(), Given(), {**ASKED, **asked})["series"]
    return found


@st.composite
def ledgers(draw: st.DrawFn) -> dict[str, float]:
    """Shares of a step, which sum to 1."""
    names = [*SHARES, "h2d", *COMM]
    weights = [draw(st.floats(0.001, 1)) for _ in names]
    return {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.floats(0.1, 10), min_size=1, max_size=3), ledgers()), min_size=2, max_size=4),
    st.sampled_from(["strong", "weak"]),
)
def test_parts_of_lost_efficiency_add_up_to_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[list[float], dict[str, float]]], scaling: str
) -> None:
    """Exactly, whatever the runs took and went to; and efficiency is the ratio of device-seconds per sample."""
    made = MadeSweep(tmp_path_factory.mktemp("made") / "sweep", scaling=scaling, repeats=3)
    for world, (times, shares) in zip(WORLDS, rows, strict=False):
        made.cell("ddp", world, times, shares=shares, batch=32 if scaling == "strong" else 4 * world)
    found = series_of(made)
    for loss, (before, after) in zip(found["losses"], itertools.pairwise(rows), strict=True):
        one, two = loss["from_world_size"], loss["to_world_size"]
        means = [math.exp(np.log(times).mean()) for times, _ in (before, after)]
        expected = means[0] * one / (means[1] * two) * (1 if scaling == "strong" else two / one)
        assert loss["efficiency"]["mean"] == pytest.approx(expected)
        assert sum(part["share"] for part in loss["parts"]) == pytest.approx(loss["lost"], abs=1e-9)
        assert 1 - loss["lost"] == pytest.approx(loss["efficiency"]["mean"])


def test_what_grows_between_two_world_sizes_is_what_is_lost(tmp_path: Path) -> None:
    """Twice the ranks, a step of 0.5 s made longer by 0.1 s of transfer: all that is lost is transfer."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 1, [1.0], shares={"forward": 0.4, "backward.gradient": 0.6, **dict.fromkeys(COMM, 0.0)})
    shares = {"forward": 0.2 / 0.6, "backward.gradient": 0.3 / 0.6, "comm.transfer": 0.1 / 0.6}
    made.cell("ddp", 2, [0.6], shares={**shares, "comm.waiting": 0.0, "comm.queued": 0.0})
    (loss,) = series_of(made)["losses"]
    assert loss["lost"] == pytest.approx(1 / 6)
    parts = {part["cause"]: part["share"] for part in loss["parts"]}
    assert parts.pop("transfer") == pytest.approx(1 / 6)
    assert parts == pytest.approx(dict.fromkeys(parts, 0.0), abs=1e-12)
    assert loss["parts"][0]["cause"] == "transfer"
    assert loss["reasons"]["parts.ci95"]


def test_events_are_no_part_of_lost_efficiency(tmp_path: Path) -> None:
    """Throughput is of steps alone, so evaluations between them lose none of it."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 1, [1.0], events=0.0)
    made.cell("ddp", 2, [0.5], events=3.0)
    (loss,) = series_of(made)["losses"]
    assert loss["lost"] == pytest.approx(0)
    assert [part["share"] for part in loss["parts"]] == pytest.approx([0.0] * len(loss["parts"]))


def test_communication_that_one_side_does_not_tell_apart_is_whole_on_both(tmp_path: Path) -> None:
    """Joined to `exposed`, and said; where a side does not know it at all, that is said."""
    made = MadeSweep(tmp_path / "sweep")
    made.cell("ddp", 1, [1.0], shares={**SHARES, **dict.fromkeys(COMM, 0.0)})
    made.cell("ddp", 2, [0.6], shares={**SHARES, "unattributed": 0.0, "comm": 0.15})
    made.cell("ddp", 4, [0.4])
    first, second = series_of(made)["losses"]
    causes = {part["cause"]: part["share"] for part in first["parts"]}
    assert "exposed" in causes
    assert not causes.keys() & {"transfer", "waiting", "queued"}
    assert first["reasons"]["parts.transfer"]
    assert "not told apart" in second["reasons"]["parts.exposed"]
    assert {part["cause"] for part in second["parts"]} == {"input", UNTOLD, "unattributed"}
    assert sum(part["share"] for part in second["parts"]) == pytest.approx(second["lost"])


@pytest.mark.parametrize("scaling", ["strong", "weak"])
def test_perfect_scaling_has_efficiency_1_and_no_knee(tmp_path: Path, scaling: str) -> None:
    """Nothing is lost, no knee is told, and a sample never costs more."""
    made = MadeSweep(tmp_path / "sweep", scaling=scaling, repeats=2)
    for world in WORLDS:
        seconds, batch = (1 / world, 32) if scaling == "strong" else (1.0, 4 * world)
        made.cell("ddp", world, [seconds, seconds], batch=batch)
    found = series_of(made)
    for point in found["points"]:
        assert point["efficiency"]["mean"] == pytest.approx(1)
        assert point["speed_up"]["mean"] == pytest.approx(point["world_size"])
        assert point["cost_ratio"]["mean"] == pytest.approx(1)
    assert [loss["lost"] for loss in found["losses"]] == pytest.approx([0.0] * 3, abs=1e-12)
    law = found["fits"]["usl"]
    assert (law["contention"]["value"], law["coherency"]["value"]) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert law["knee"] is None
    assert found["reasons"]["fits.usl.knee"]
    assert found["affordable"]["world_size"] is None
    assert "no limit" in found["reasons"]["affordable.world_size"]
    assert (found["fits"]["amdahl"] is None) == (scaling == "weak")


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 0.5), st.floats(0.0, 0.05), st.floats(1e-3, 1e3))
def test_a_planted_law_without_noise_is_found_to_the_digit(a: float, b: float, unit: float) -> None:
    """Contention, coherency and so the knee, in whatever unit seconds are."""
    by_world = {world: [unit * world * usl(world, a, b)] for world in WORLDS}
    found = fit(by_world, USL_TERMS)
    assert contention(found.terms) == pytest.approx(a, abs=1e-7)
    assert coherency(found.terms) == pytest.approx(b, abs=1e-8)
    assert found.residual == pytest.approx(0, abs=1e-7)
    if b > 1e-4:
        assert knee(found.terms) == pytest.approx(max(1.0, math.sqrt((1 - a) / b)), rel=1e-3)
    assert not len(found.drawn)


def test_the_knee_is_where_the_law_has_its_highest_throughput() -> None:
    """By looking at every world size."""
    terms = np.array([1.0, 0.05, 0.002])
    rates = {world: world / (1 + 0.05 * (world - 1) + 0.002 * world * (world - 1)) for world in range(1, 100)}
    assert abs(max(rates, key=lambda world: rates[world]) - knee(terms)) <= 1
    costs = {world: 1 + 0.05 * (world - 1) + 0.002 * world * (world - 1) for world in range(1, 100)}
    assert max(world for world, cost in costs.items() if cost <= 2) == math.floor(affordable(terms, 2.0))


def test_intervals_of_the_law_hold_what_was_planted() -> None:
    """In about 95 of 100 sweeps of three runs a cell that differ by 2 %."""
    generator = np.random.default_rng(0)
    widths: list[float] = []
    hits, trials = {"contention": 0, "coherency": 0}, 60
    for trial in range(trials):
        by_world = {
            world: (world * usl(world, 0.08, 0.004) * np.exp(generator.normal(0, 0.02, 3))).tolist() for world in WORLDS
        }
        found = fit(by_world, USL_TERMS, seed=trial)
        for name, of, planted in (("contention", contention, 0.08), ("coherency", coherency, 0.004)):
            interval = found.interval(of)
            assert interval is not None
            low, high = interval
            assert low is not None
            assert high is not None
            hits[name] += low <= planted <= high
            widths += [high - low] if name == "contention" else []
    assert all(0.85 * trials <= count for count in hits.values()), hits
    assert np.mean(widths) < 0.08, "an interval as wide as what it is of tells nothing"


def test_amdahl_needs_two_world_sizes_and_the_universal_law_three(tmp_path: Path) -> None:
    """With fewer they are null and say how many there were."""
    for count, amdahl, universal in ((1, False, False), (2, True, False), (3, True, True)):
        made = MadeSweep(tmp_path / f"sweep{count}")
        for world in WORLDS[:count]:
            made.cell("ddp", world, [usl(world, 0.1)])
        found = series_of(made)
        assert (found["fits"]["amdahl"] is not None, found["fits"]["usl"] is not None) == (amdahl, universal)
        for name, there in (("amdahl", amdahl), ("usl", universal)):
            assert there or "too few" in found["reasons"][f"fits.{name}"]
        if amdahl:
            serial = found["fits"]["amdahl"]["serial_fraction"]
            assert serial["value"] == pytest.approx(0.1)
            assert serial["ci95"] is None
            assert found["curve_of"] == ("usl" if universal else "amdahl")


def test_oversubscribed_points_are_marked_and_change_no_fit(tmp_path: Path) -> None:
    """Whatever they took: the law is that of the others."""
    laws = []
    for slow in (0.3, 30.0):
        made = MadeSweep(tmp_path / f"sweep{slow}", repeats=2)
        for world in (1, 2, 4):
            made.cell("ddp", world, [usl(world, 0.1), usl(world, 0.11)])
        made.cell("ddp", 8, [slow, slow * 1.1], facts={"oversubscribed": True})
        found = series_of(made)
        assert [point["fitted"] for point in found["points"]] == [True, True, True, False]
        assert found["fits"]["usl"]["world_sizes"] == [1, 2, 4]
        assert found["losses"][-1]["oversubscribed"]
        assert found["extrapolated_from_world_size"] == 4
        laws.append((found["fits"], found["curve"], found["affordable"]))
    assert laws[0] == laws[1]


def test_what_lies_beyond_the_measured_is_marked_and_says_from_where(tmp_path: Path) -> None:
    """The curve, the knee and what is affordable; a limit within the measured is no extrapolation."""
    made = MadeSweep(tmp_path / "sweep")
    for world in WORLDS:
        made.cell("ddp", world, [usl(world, 0.02, 0.001)])
    found = series_of(made)
    assert {row["world_size"]: row["extrapolated"] for row in found["curve"]} == {
        1: False, 2: False, 4: False, 8: False, 16: True, 32: True,
    }  # fmt: skip
    place = found["fits"]["usl"]["knee"]
    assert place["extrapolated"]
    assert place["from_world_size"] == 8
    assert place["world_size"] == pytest.approx(math.sqrt(0.98 / 0.001), rel=1e-3)
    near = series_of(made, cost_ratio=1.05)["affordable"]
    assert near["world_size"] == max(n for n in range(1, 50) if n * usl(n, 0.02, 0.001) <= 1.05)
    assert not near["extrapolated"]
    assert "1.05 times" in near["asked"]


def test_a_limit_in_money_needs_a_price(tmp_path: Path) -> None:
    """With one it is the same as in hours; without, null with the reason."""
    for price in (2.0, None):
        made = MadeSweep(tmp_path / f"sweep{price}")
        for world in WORLDS:
            made.cell("ddp", world, [usl(world, 0.1)], usd_per_gpu_hour=price)
        limit = 2.0 * 1.35 * 1.0 / 32 / 3600 * 1e6
        found = series_of(made, usd_per_million_samples=limit)
        if price is None:
            assert found["affordable"] is None
            assert "price" in found["reasons"]["affordable"]
        else:
            assert found["affordable"]["world_size"] == 4
            assert "USD" in found["affordable"]["asked"]


def test_one_run_a_cell_has_no_intervals_and_says_why(tmp_path: Path) -> None:
    made = MadeSweep(tmp_path / "sweep")
    for world in WORLDS:
        made.cell("ddp", world, [usl(world, 0.1)])
    found = series_of(made)
    for point in found["points"]:
        assert point["efficiency"]["ci95"] is None
        assert point["reasons"]["efficiency.ci95"]
    assert found["fits"]["usl"]["contention"]["ci95"] is None
    assert all(row["ci95"] is None for row in found["curve"])


@pytest.mark.parametrize(("scaling", "batches"), [("strong", (32, 64)), ("weak", (32, 32))])
def test_cells_of_different_work_are_no_series(tmp_path: Path, scaling: str, batches: tuple[int, int]) -> None:
    """Another global batch under strong scaling, another batch per rank under weak: points, but no law and no loss."""
    made = MadeSweep(tmp_path / "sweep", scaling=scaling)
    for world, batch in zip((1, 2), batches, strict=True):
        made.cell("ddp", world, [1.0], batch=batch)
    found = series_of(made)
    assert found["losses"] is None
    assert found["fits"] == {"amdahl": None, "usl": None}
    assert "differ in" in found["reasons"]["losses"]
    assert [point["efficiency"] for point in found["points"]] == [None, None]


def test_series_are_of_one_strategy_and_precision(tmp_path: Path) -> None:
    """And cells that were not measured are in none."""
    made = MadeSweep(tmp_path / "sweep")
    for strategy in ("ddp", "zero3"):
        for precision in ("fp32", "bf16"):
            for world in (1, 2):
                made.cell(strategy, world, [1 / world], precision=precision)
    made.cell("fsdp2", 2, refused="no")
    found = summarise_sweep(made.write(), Given(), ASKED)["series"]
    assert [each["name"] for each in found] == ["ddp fp32", "ddp bf16", "zero3 fp32", "zero3 bf16"]
    assert all(len(each["points"]) == 2 for each in found)


def test_amdahls_terms_are_a_part_of_the_universal_law() -> None:
    """Data of Amdahl's law has no coherency, and both fits agree."""
    by_world = {world: [world * usl(world, 0.2)] for world in WORLDS}
    one, two = fit(by_world, AMDAHL_TERMS), fit(by_world, USL_TERMS)
    assert contention(one.terms) == pytest.approx(contention(two.terms)) == pytest.approx(0.2)
    assert coherency(one.terms) == 0
    assert knee(one.terms) == math.inf


@pytest.mark.parametrize("a", [0.0, 0.03, 0.1, 0.5])
@pytest.mark.parametrize("unit", [1.0, 3.7e-4, 1234.5])
def test_exact_data_of_amdahls_law_have_no_coherency_and_no_knee(a: float, unit: float) -> None:
    """Not one of 1e-16, which rounding makes, with a knee at millions of ranks."""
    worlds = (1, 2, 3, 4, 6, 8, 16)
    found = fit({world: [unit * world * usl(world, a)] * 2 for world in worlds}, USL_TERMS)
    assert found.terms[2] == 0
    assert found.value(knee) is None
    assert not found.drawn[:, 2].any()
    assert float(contention(found.terms)) == pytest.approx(a, abs=1e-12)


def test_series_that_differ_in_an_option_are_named_by_it(tmp_path: Path) -> None:
    """And by that alone; a series that nothing is like has strategy and precision."""
    made = MadeSweep(tmp_path / "sweep")
    for strategy, checkpointing in (("ddp", "none"), ("ddp", "full"), ("zero2", "full")):
        cell = made.cell(strategy, 2, [1.0], name=f"{strategy}-{checkpointing}")
        cell.config.update(checkpointing=checkpointing, optimizer="adamw")
    found = summarise_sweep(made.write(), Given(), {"cost_ratio": None, "usd_per_million_samples": None})["series"]
    assert [each["name"] for each in found] == [
        "ddp fp32, checkpointing none",
        "ddp fp32, checkpointing full",
        "zero2 fp32",
    ]


def test_a_limit_below_the_cost_on_one_rank_is_no_world_size(tmp_path: Path) -> None:
    """It is null with its reason, not 0 ranks; table and page say why, and why there is no knee."""
    made = MadeSweep(tmp_path / "sweep")
    for world in (1, 2, 4):
        made.cell("ddp", world, [usl(world, 0.1)], usd_per_gpu_hour=2.0)
    asked = {"cost_ratio": None, "usd_per_million_samples": 1e-6}
    summary = summarise_sweep(made.write(), Given(), asked)
    (series,) = summary["series"]
    assert series["affordable"]["world_size"] is None
    assert "by the law it costs more on any number of ranks" in series["reasons"]["affordable.world_size"]
    write_sweep_report(tmp_path, summary)
    page = (tmp_path / "report.html").read_text()
    assert series["reasons"]["fits.usl.knee"] in page
    assert series["reasons"]["affordable.world_size"] in page
