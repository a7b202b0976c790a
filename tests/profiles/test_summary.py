"""The summary says what the records say, to the number, and why it is silent where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.statistics import block_bootstrap_mean, spread
from scalelab.profiles.analysis.summary import summarise, write_summary
from scalelab.profiles.records import EndRecord, EventRecord, Record, Role, StepRecord, WindowRecord
from scalelab.profiles.runfolder import RunFolder, appending
from scalelab.profiles.used import MemoryRecord

# fmt: off
TOP_LEVEL = {
    "schema", "source", "run_id", "name", "strategy", "engine", "launcher", "device", "device_name", "world_size",
    "nodes", "oversubscribed", "precision", "checkpointing", "compile", "micro_batch", "grad_accumulation",
    "global_batch", "model", "steps", "throughput", "step_seconds", "phases", "detail", "events", "per_rank",
    "comm", "memory", "utilization", "cost", "quality", "loss", "grad_norm", "counterfactual", "overhead",
    "outcome", "reasons",
}
# fmt: on
# Nulls that have their reason elsewhere or are no measurement.
EXPLAINED_ABOVE = {"outcome.exit_code", "quality.metric"}


def run_json(world_size: int = 2, **config: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "device_name": "a processor",
        "world_size": world_size,
        "oversubscribed": False,
        "precision": {"name": "fp32"},
        "target": {"metric": "ap_mean", "value": 0.3},
        "config": {
            "strategy": "ddp",
            "launcher": "fork",
            "device": "cpu",
            "micro_batch": 4,
            "grad_accumulation": 1,
            "global_batch": 4 * world_size,
            "model": "tiny",
            "probe": "on",
            "record_grad_norm": True,
            "engine": "native",
            "checkpointing": "none",
            "compile": False,
            **config,
        },
        "model": {"name": "tiny", "parameters": 1234},
    }


def step(index: int, seconds: float, role: Role = "measured", **values: Any) -> StepRecord:
    fields: dict[str, Any] = {
        "start_seconds": 0.0,
        "phases": {"data": 0.1 * seconds, "h2d": 0.0, "forward": 0.2 * seconds, "backward": 0.4 * seconds},
        "host_data_seconds": 0.1 * seconds,
        "losses": [1.0],
        "samples": 4,
        "lr": 1e-3,
        "grad_square_sum": 8.0,
        "grad_replicas": 2,
        **values,
    }
    return StepRecord(step=index, role=role, seconds=seconds, **fields)


def folder_with(tmp_path: Path, facts: dict[str, Any], *ranks: list[Record]) -> RunFolder:
    folder = RunFolder.create(tmp_path, "x")
    folder.write("run.json", facts)
    folder.write("status.json", {"state": "finished", "exit_code": 0})
    for rank, records in enumerate(ranks):
        with appending(folder.rank_file(rank)) as write:
            for record in records:
                write(record)
    return folder


def silent(value: Any, path: str = "") -> set[str]:
    """Dotted paths of every null below `value`; rows of lists count as their list."""
    if isinstance(value, dict):
        return {found for key, part in value.items() for found in silent(part, f"{path}.{key}" if path else key)}
    if isinstance(value, list):
        return {found for part in value for found in silent(part, path)}
    return {path} if value is None else set()


def explained(path: str, reasons: dict[str, str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:length]) in reasons for length in range(1, len(parts) + 1))


def test_two_ranks_to_the_number(tmp_path: Path) -> None:
    """Means over ranks and steps, shares that sum to 1, cost from the step, norms and losses over ranks."""
    ranks: list[list[Record]] = [
        [
            step(0, 9.0, "warmup", losses=[4.0]),
            step(1, 1.0, losses=[2.0]),
            MemoryRecord(step=1, parameters_bytes=100, gradients_bytes=50 + rank, optimizer_bytes=200),
            EventRecord(event="evaluation", step=1, start_seconds=10.0, seconds=2.0, values={"ap_mean": 0.2}),
            step(2, 3.0 + 2 * rank, losses=[1.0 + rank]),
            EventRecord(event="evaluation", step=2, start_seconds=15.0, seconds=4.0, values={"ap_mean": 0.4}),
            EndRecord(rss_peak_bytes=1000 + rank),
        ]
        for rank in range(2)
    ]
    summary = summarise(load_run(folder_with(tmp_path, run_json(), *ranks)))
    assert summary["step_seconds"]["mean"] == pytest.approx(2.5)
    assert summary["throughput"]["samples_per_second"] == pytest.approx(8 / 2.5)
    counts = {"warmup": 1, "measured": 2, "expected": 2, "profiled": 0, "skipped": 0, "loss_not_finite": 0}
    assert summary["steps"] == counts
    shares = {name: row["share"] for name, row in summary["phases"].items() if row}
    assert shares == pytest.approx(
        {"data": 0.1, "forward": 0.2, "backward": 0.4, "optimizer": 0.0, "unattributed": 0.3}
    )
    assert sum(shares.values()) == pytest.approx(1)
    assert summary["events"] == [{"kind": "evaluation", "count": 2, "failed": 0, "seconds": 6.0}]
    assert summary["loss"] == [4.0, 2.0, 1.5]
    assert summary["grad_norm"] == pytest.approx([8.0**0.5] * 3)
    assert summary["memory"]["by_kind"]["gradients"] == 51
    assert summary["memory"]["rss_peak_bytes"] == 1001
    assert summary["cost"]["device_hours_per_million_samples"] == pytest.approx(2 * 2.5 / 8 / 3600 * 1e6)
    assert summary["cost"]["gpu_hours_per_million_samples"] is None
    assert summary["quality"] == {"metric": "ap_mean", "best": 0.4, "seconds_to_target": 19.0, "usd_to_target": None}
    assert [row["step_seconds"] for row in summary["per_rank"]] == [2.0, 3.0]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("steps", [0, 2, 150])
def test_every_null_has_a_reason_and_every_field_is_there(tmp_path: Path, world_size: int, steps: int) -> None:
    """Of a complete run, of one that ended in its warm-up, of one rank and two."""
    records: list[Record] = [step(0, 1.0, "warmup"), *(step(index, 1.0) for index in range(1, steps + 1))]
    summary = write_summary(folder_with(tmp_path, run_json(world_size), *[records] * world_size))
    assert set(summary) >= TOP_LEVEL
    for path in silent({key: value for key, value in summary.items() if key != "reasons"}) - EXPLAINED_ABOVE:
        assert explained(path, summary["reasons"]), path
    for path in summary["reasons"]:
        if not path.startswith(("per_rank", "memory.per_rank", "cost.by_cause_leaves.")):
            value: Any = summary
            for part in path.split("."):
                value = value[part] if value is not None else None
            assert value is None, f"{path} has a reason to be null and is {value}"


def test_one_rank_communicates_nothing_and_that_is_known(tmp_path: Path) -> None:
    """At world size 1 communication is 0, not unknown."""
    summary = summarise(load_run(folder_with(tmp_path, run_json(1), [step(0, 1.0)])))
    assert summary["comm"]["exposed_seconds"] == 0
    assert summary["phases"]["comm_exposed"]["mean"] == 0


def test_a_run_cut_short_counts_the_steps_that_all_ranks_finished(tmp_path: Path) -> None:
    """Steps that one rank never finished enter nothing."""
    ranks: list[list[Record]] = [[step(i, 1.0) for i in range(5)], [step(i, 3.0) for i in range(3)]]
    summary = summarise(load_run(folder_with(tmp_path, run_json(), *ranks)))
    assert summary["steps"]["measured"] == 3
    assert summary["step_seconds"]["mean"] == pytest.approx(2.0)
    assert len(summary["loss"]) == 3


def test_probe_off_gives_the_rate_alone(tmp_path: Path) -> None:
    """The window's time over its steps, without spread or phases."""
    facts = run_json(probe="off", record_grad_norm=False)
    window: list[Record] = [WindowRecord(steps=10, samples=40, seconds=5.0)]
    summary = summarise(load_run(folder_with(tmp_path, facts, window, window)))
    assert summary["step_seconds"]["mean"] == pytest.approx(0.5)
    assert summary["step_seconds"]["ci95"] is None
    assert summary["throughput"]["samples_per_second"] == pytest.approx(16)
    assert summary["phases"]["forward"] is None


def test_phases_longer_than_their_step_are_refused(tmp_path: Path) -> None:
    """A ledger that overlaps is a bug, not a result."""
    folder = folder_with(tmp_path, run_json(1), [step(0, 1.0, phases={"forward": 1.5})])
    with pytest.raises(AssertionError, match="unattributed is negative"):
        summarise(load_run(folder))


def test_a_loss_that_was_not_finite_stays_null(tmp_path: Path) -> None:
    """One rank's NaN makes the step's mean unknown, not the mean of the others."""
    ranks: list[list[Record]] = [[step(0, 1.0, losses=[1.0])], [step(0, 1.0, losses=[None])]]
    assert summarise(load_run(folder_with(tmp_path, run_json(), *ranks)))["loss"] == [None]


def test_no_run_folder_is_said_so(tmp_path: Path) -> None:
    """A folder without run.json is named as what it is not."""
    with pytest.raises(ValueError, match=r"no run\.json"):
        load_run(RunFolder(tmp_path))


def test_bootstrap_covers_the_mean_of_an_autocorrelated_series() -> None:
    """About 95 % of the intervals hold the true mean; blocks keep that near when neighbours are alike."""
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        noise = generator.normal(size=300)
        series = np.convolve(noise, np.ones(3) / 3, mode="valid")
        interval = block_bootstrap_mean(series.tolist(), seed=trial)
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
    assert 170 <= covered <= 199


def test_spread_tells_percentiles_only_where_there_are_enough_steps() -> None:
    """No 99th percentile under 100 steps, no interval under 3."""
    assert spread([1.0, 2.0])["ci95"] is None
    assert spread([1.0] * 99)["p99"] is None
    assert spread([1.0] * 100)["p99"] == 1.0
    assert spread([1.0] * 100)["ci95"] == [1.0, 1.0]
