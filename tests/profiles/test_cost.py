"""Cost: every second of a step and of the events after it under one cause, and money that is hours x price, or null."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab.profiles.analysis.by_cause import leaves
from scalelab.profiles.analysis.columns import Steps
from scalelab.profiles.analysis.cost import device_hours, reprice
from scalelab.profiles.analysis.load import RankRecords, Run
from scalelab.profiles.analysis.prices import ON_DEMAND, SPOT, Given, catalogue, catalogued, rates
from scalelab.profiles.analysis.summary import summarise, write_summary
from scalelab.profiles.records import EndRecord, EventRecord, StartRecord, StepRecord

from ..support.sweeps import run_json

SOME = st.floats(0.0, 1.0, allow_subnormal=False)


def step(index: int, role: Any = "measured", seconds: float = 1.0, **values: Any) -> StepRecord:
    fields: dict[str, Any] = {
        "start_seconds": 0.0,
        "phases": {"data": 0.1, "forward": 0.2, "backward": 0.4, "optimizer": 0.1},
        "host_data_seconds": 0.1,
        "losses": [1.0],
        "samples": 4,
        "lr": 1e-3,
        **values,
    }
    return StepRecord(step=index, role=role, seconds=seconds, **fields)


def event(after: int, seconds: float, kind: Any = "evaluation", **values: Any) -> EventRecord:
    return EventRecord(event=kind, step=after, start_seconds=0.0, seconds=seconds, values=values)


def run_of(
    steps: list[StepRecord], events: list[EventRecord] | None = None, facts: dict[str, Any] | None = None, **more: Any
) -> Run:
    """A run of as many ranks as its world, all with the same records."""
    told = facts or run_json("x", 1)
    rank: dict[str, Any] = {
        "start": None,
        "memory": None,
        "window": None,
        "end": None,
        "unreadable": 0,
        "steps": Steps.of(steps),
        "events": tuple(events or ()),
        **more,
    }
    ranks = tuple(RankRecords(rank=index, **rank) for index in range(told["world_size"]))
    return Run(run_id="x", run_json=told, status={"state": "finished", "exit_code": 0}, ranks=ranks)


def cost_of(run: Run, **given: float) -> dict[str, Any]:
    return reprice(summarise(run), Given(**given))["cost"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(SOME, SOME, SOME, SOME, SOME, SOME), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 5)), max_size=4),
    st.integers(1, 3),
)
def test_leaves_sum_to_all_of_the_steps_and_the_events_after_them(
    rows: list[tuple[float, ...]], between: list[tuple[int, float]], world: int
) -> None:
    """Whatever the phases are: shares sum to 1, seconds to the step and its events, parts to their node."""
    names = ("data", "forward", "backward", "optimizer")
    steps = [
        step(index, seconds=sum(row) + 0.01, phases=dict(zip(names, row, strict=False)))
        for index, row in enumerate(rows)
    ]
    events = [event(after, seconds) for after, seconds in between if after < len(rows)]
    summary = summarise(run_of(steps, events, run_json("x", world)))
    cost = summary["cost"]
    total = sum(each.seconds for each in (*steps, *events)) / len(steps)
    assert cost["by_cause_total"]["seconds_per_step"] == pytest.approx(total)
    assert sum(row["share"] for row in cost["by_cause_leaves"]) == pytest.approx(1)
    assert sum(row["seconds"] for row in cost["by_cause_leaves"]) == pytest.approx(total)
    shares = [row["share"] for row in cost["by_cause_leaves"]]
    assert shares == sorted(shares, reverse=True)
    assert {name for name, _ in leaves(cost["by_cause"])} == {row["cause"] for row in cost["by_cause_leaves"]}
    assert cost["by_cause"]["events"]["seconds"] == pytest.approx(sum(each.seconds for each in events) / len(steps))


def test_events_before_the_measured_steps_and_the_profilers_are_not_theirs() -> None:
    """An evaluation in warm-up and the window of the profiler cost nothing of the steady state."""
    steps = [step(0, "warmup"), step(1), step(2)]
    events = [event(0, 7.0), event(1, 1.0, "checkpoint"), event(2, 3.0), event(2, 9.0, "profiler")]
    assert cost_of(run_of(steps, events))["by_cause"]["events"]["seconds"] == pytest.approx(2.0)


def test_recompute_is_a_part_of_backward_where_it_was_timed() -> None:
    """Timed apart it is a leaf; not timed, backward stays whole and says why; without checkpointing it is 0."""
    facts = run_json("x", 1, checkpointing="full")
    cost = cost_of(run_of([step(0, recompute_seconds=0.1)], facts=facts))
    assert cost["by_cause"]["backward"]["recompute"]["seconds"] == pytest.approx(0.1)
    assert cost["by_cause"]["backward"]["gradient"]["seconds"] == pytest.approx(0.3)
    for recompute in (None, 0.5):
        summary = summarise(run_of([step(0, recompute_seconds=recompute)], facts=facts))
        assert summary["cost"]["by_cause"]["backward"]["gradient"] is None
        assert "backward" in {row["cause"] for row in summary["cost"]["by_cause_leaves"]}
        assert summary["reasons"]["cost.by_cause.backward.gradient"]
    assert cost_of(run_of([step(0)]))["by_cause"]["backward"]["recompute"]["seconds"] == 0


def test_communication_that_is_not_known_is_no_leaf_and_says_so() -> None:
    """Two ranks whose collectives were not recorded: the tree closes without them."""
    summary = summarise(run_of([step(0)], facts=run_json("x", 2)))
    assert summary["cost"]["by_cause"]["comm"] is None
    assert "no record of its collectives" in summary["reasons"]["cost.by_cause.comm"]
    assert sum(row["share"] for row in summary["cost"]["by_cause_leaves"]) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 100), st.floats(0.01, 10), st.integers(1, 4))
def test_money_is_hours_times_price_and_nothing_else(price: float, seconds: float, world: int) -> None:
    """To the last digit, of the whole and of each part."""
    facts = run_json("x", world)
    run = run_of([step(0, seconds=seconds + 1), step(1, seconds=seconds + 1)], [event(0, 1.0)], facts)
    cost = cost_of(run, usd_per_gpu_hour=price)
    hours = device_hours(world, seconds + 1, 4 * world)
    assert cost["device_hours_per_million_samples"] == pytest.approx(hours, rel=1e-12)
    assert cost["usd_per_million_samples"] == cost["device_hours_per_million_samples"] * price
    total = cost["by_cause_total"]
    assert total["usd_per_million_samples"] == total["device_hours_per_million_samples"] * price
    for row in cost["by_cause_leaves"]:
        assert row["usd_per_million_samples"] == total["device_hours_per_million_samples"] * row["share"] * price


def test_without_a_price_all_money_is_null_with_the_reason() -> None:
    """On a processor there is no catalogue's price; each null says so, and no figure of money is left."""
    summary = summarise(run_of([step(0), step(1)], [event(0, 1.0)], run_json("x", 2)))
    money = [path for path in paths(summary["cost"]) if "usd" in path or path in ("spot", "price_source")]
    assert len(money) > 10
    for path in money:
        assert value(summary["cost"], path) is None, path
        plain = ".".join(part for part in path.split(".") if part != "0")
        assert any(told in summary["reasons"] for told in (f"cost.{plain}", f"cost.{path}")), path
    assert "--usd-per-gpu-hour" in summary["reasons"]["cost.usd_per_gpu_hour"]


def paths(value: Any, above: str = "") -> list[str]:
    """Dotted paths of all leaves; of a list its first row's."""
    if isinstance(value, dict) and value:
        return [found for name, each in value.items() for found in paths(each, f"{above}.{name}" if above else name)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return paths(value[0], f"{above}.0")
    return [above]


def value(of: Any, path: str) -> Any:
    for part in path.split("."):
        of = of[int(part) if isinstance(of, list) else part] if of is not None else None
    return of


def test_a_price_given_to_the_run_or_the_report_names_its_source() -> None:
    """The report's goes before the run's, which goes before the catalogue's; the run's own figures stay."""
    facts = run_json("x", 1, usd_per_gpu_hour=3.0, usd_per_kwh=0.5)
    summary = summarise(run_of([step(0)], facts=facts))
    assert summary["cost"]["usd_per_gpu_hour"] == 3.0
    assert "given to the run" in summary["cost"]["price_source"]
    again = reprice(summary, Given(usd_per_gpu_hour=5.0))
    assert again["cost"]["usd_per_million_samples"] == again["cost"]["device_hours_per_million_samples"] * 5.0
    assert "given to report" in again["cost"]["price_source"]
    assert again["cost"]["usd_per_kwh"] == 0.5
    assert reprice(again, Given(usd_per_gpu_hour=3.0))["cost"]["by_cause"] == summary["cost"]["by_cause"]
    assert {name: each for name, each in again.items() if name not in ("cost", "quality", "reasons")} == {
        name: each for name, each in summary.items() if name not in ("cost", "quality", "reasons")
    }


def test_repricing_at_the_same_prices_changes_nothing() -> None:
    """Not even the reasons."""
    for facts in (run_json("x", 1), run_json("x", 1, usd_per_gpu_hour=3.0), run_json("x", 1, device="cuda")):
        summary = summarise(run_of([step(0), step(1)], [event(0, 1.0)], facts))
        assert reprice(summary, Given()) == summary


def test_the_catalogue_prices_a_card_by_its_most_trusted_on_demand_rows() -> None:
    """Median of the rows of the highest trust, spot beside it, all of them named; each row has its source."""
    rows = [row for row in catalogue() if "NVIDIA H100 80GB HBM3" in row["device_names"]]
    good = [float(row["usd_per_gpu_hour"]) for row in rows if row["trust"] == "good"]
    found = catalogued("NVIDIA H100 80GB HBM3", ON_DEMAND)
    assert found.usd == pytest.approx(sum(good) / 2) == pytest.approx(4.14)
    for word in ("Lambda", "4.29", "3.99", "on-demand", "not known", "trust good", "skypilot"):
        assert word in found.source
    spot = catalogued("NVIDIA H100 80GB HBM3", SPOT)
    assert spot.usd == pytest.approx(2.69)
    assert "2026-03" in spot.source
    assert all(row["source"] and row["trust"] for row in catalogue())


@pytest.mark.parametrize("name", ["Tesla T4", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "a card of tomorrow", "", None])
def test_a_card_that_is_ambiguous_or_unknown_has_no_price(name: str | None) -> None:
    """A row of several cards, a part of a card, none at all: null, with the way out."""
    found = rates({"config": {"device": "cuda"}, "device_name": name})
    assert found.hour.usd is None
    assert "--usd-per-gpu-hour" in found.hour.source


def test_energy_is_joules_times_the_tariff(tmp_path: Path) -> None:
    """36 J a sample are 10 kWh a million; without a tariff or joules it is null."""
    summary = summarise(run_of([step(0)]))
    measured = {**summary, "utilization": {**summary["utilization"], "joules_per_sample": 36.0}}
    again = reprice(measured, Given(usd_per_kwh=0.3))
    assert again["cost"]["energy_usd_per_million_samples"] == pytest.approx(3.0)
    assert reprice(measured, Given())["cost"]["energy_usd_per_million_samples"] is None
    assert "joules" in reprice(summary, Given(usd_per_kwh=0.3))["reasons"]["cost.energy_usd_per_million_samples"]


def test_what_it_cost_to_reach_the_target() -> None:
    """Seconds on rank 0's timeline up to the end of that evaluation, on all ranks."""
    facts = {**run_json("x", 2), "target": {"metric": "ap_mean", "value": 0.3}}
    met = EventRecord(event="evaluation", step=0, start_seconds=1700.0, seconds=100.0, values={"ap_mean": 0.4})
    summary = reprice(summarise(run_of([step(0)], [met], facts)), Given(usd_per_gpu_hour=3.0))
    assert summary["quality"]["usd_to_target"] == pytest.approx(1800 * 2 / 3600 * 3.0)


def started(seconds: float, boot: str = "b") -> StartRecord:
    return StartRecord(
        rank=0,
        local_rank=0,
        world_size=1,
        host="h",
        boot_id=boot,
        pid=1,
        device="cpu",
        device_name="a processor",
        wall_seconds=0.0,
        monotonic_seconds=seconds,
        threads=1,
        versions={},
    )


def test_the_whole_run_has_its_start_up_and_its_end() -> None:
    """Parts sum to all from the folder's making to the last record, and cost it."""
    steps = [step(0, "warmup", begin_ns=int(110e9)), step(1, begin_ns=int(111e9))]
    facts = {**run_json("x", 2), "began": {"wall_seconds": 0.0, "monotonic_seconds": 100.0, "boot_id": "b"}}
    end = EndRecord(rss_peak_bytes=1, monotonic_seconds=120.0)
    whole = cost_of(run_of(steps, [event(1, 3.0)], facts, start=started(105.0), end=end), usd_per_gpu_hour=3.6)[
        "whole_run"
    ]
    parts = {row["part"]: row["seconds"] for row in whole["parts"]}
    assert parts == pytest.approx({"start_up": 10, "warmup": 1, "measured": 1, "evaluation": 3, "after_training": 5})
    assert whole["seconds"] == pytest.approx(20)
    assert whole["usd"] == pytest.approx(20 * 2 / 3600 * 3.6)
    assert whole["samples"] == 16
    assert whole["device_hours_per_million_samples"] == pytest.approx(40 / 3600 / 16 * 1e6)


@pytest.mark.parametrize("boot", ["another", None])
def test_a_whole_run_whose_begin_or_end_is_not_known_is_null(boot: str | None) -> None:
    """Another boot's clock, no begin, no end: said, not guessed."""
    steps = [step(0, begin_ns=int(110e9))]
    facts = run_json("x", 1) | ({} if boot is None else {"began": {"monotonic_seconds": 1.0, "boot_id": boot}})
    for end in (None, EndRecord(rss_peak_bytes=1), EndRecord(rss_peak_bytes=1, monotonic_seconds=120.0)):
        summary = summarise(run_of(steps, facts=facts, start=started(105.0), end=end))
        assert summary["cost"]["whole_run"] is None
        assert summary["reasons"]["cost.whole_run"]


def test_a_report_at_a_price_leaves_run_json_alone(tmp_path: Path) -> None:
    """The price stands in the summary, as given to the report."""
    from scalelab.profiles.runfolder import RunFolder

    from ..support.sweeps import write_run

    folder = RunFolder.create(tmp_path, "x")
    write_run(folder, run_json("x", 1))
    before = (folder.path / "run.json").read_bytes()
    summary = write_summary(folder, Given(usd_per_gpu_hour=2.0))
    assert folder.read("summary.json")["cost"]["usd_per_gpu_hour"] == 2.0 == summary["cost"]["usd_per_gpu_hour"]
    assert (folder.path / "run.json").read_bytes() == before
    assert write_summary(folder)["cost"]["usd_per_gpu_hour"] is None
