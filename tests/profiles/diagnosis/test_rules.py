"""Each rule names its cause where removing it would buy enough, and holds its tongue where it would not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scalelab.launch.config import RunConfig
from scalelab.launch.scenarios import scenarios
from scalelab.profiles.analysis.diagnosis.diagnose import diagnose
from scalelab.profiles.analysis.diagnosis.rules import rules
from scalelab.profiles.analysis.load import Run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import EventRecord
from scalelab.profiles.used import BatchesRecord, CountedShapes, FlopsRecord, MemoryStepRecord

from tests.profiles.diagnosis.made import COUNTED, PHASES, STEPS, Seconds, label, made, readings, told

WHOLE = sum(PHASES.values()) + 0.002
ON_CUDA_ALONE = {"h2d_bound", "host_sync"}


def late(rank: int | None, phase: str, seconds: float) -> Seconds:
    return lambda r, step, name: seconds if name == phase and rank in (None, r) else 0.0


def stalls(seconds: float) -> Run:
    events = [
        EventRecord(event="checkpoint", step=step, start_seconds=0.0, seconds=seconds) for step in range(1, STEPS, 4)
    ]
    return made(events=events, config={"save_every": 4})


def uneven(slope: float) -> Run:
    generator = np.random.default_rng(1)
    held = generator.integers(500, 1500, size=(2, STEPS)) * np.array([[1], [3]])
    return made(
        extra=lambda rank, step, name: slope * float(held[rank, step]) if name == "forward" else 0.0,
        batches=lambda rank: BatchesRecord(elements=held[rank].tolist()),
    )


def crowded(delay: float, others: float) -> Run:
    return made(
        extra=late(None, "forward", delay),
        hosts=readings(others=others),
        fields=lambda rank, step: {"run_delay_seconds": delay},
    )


def calls(number: int) -> Run:
    counted = MemoryStepRecord(
        step=STEPS,
        operators={"forward": number, "backward": 2 * number},
        operator_seconds_by_phase=dict.fromkeys(("forward", "backward"), 5e-6),
    )
    return made(memory_step=counted, extra=late(None, "forward", number * 1e-6))


def calibrated(gain: float) -> Run:
    rate = {"median": 1e11, "p10": 0.99e11, "p90": 1.01e11, "count": 5}
    fast = {name: value * gain if name != "count" else value for name, value in rate.items()}
    calibration = {
        "name": "c", "made_utc": "2026-01-01T00:00:00Z", "host": "here", "device": "cpu", "device_name": "a processor",
        "cores": 4, "threads": 1, "ranks": 2, "backend": "gloo", "versions": {}, "memory_bytes_per_second": rate,
        "matmul_flops_per_second": {"fp32": rate, "bf16": fast}, "host_to_device_bytes_per_second": None,
        "device_to_host_bytes_per_second": None, "collective_seconds": {}, "wire_factor": None, "run_spread": None,
        "reasons": {},
    }  # fmt: skip
    counted = CountedShapes(by_branch={"all": 4 * 10**9}, recomputed=0, micro_batches=2 * STEPS)
    flops = FlopsRecord(
        samples_per_micro_batch=4, counted=[counted], without_padding=None, padding=None, uncounted={},
        reasons={"without_padding": "", "padding": ""},
    )  # fmt: skip
    return made(facts={"calibration": calibration}, flops=flops)


# By label: a run in which removing the cause buys well over 15 % of the step, and one in which it does not.
CASES: dict[str, tuple[Callable[[], Run], Callable[[], Run]]] = {
    "input_bound": (
        lambda: made(extra=late(None, "data", 0.25 * WHOLE)),
        lambda: made(extra=late(None, "data", 0.10 * WHOLE)),
    ),
    "straggler_rank": (
        lambda: made(extra=late(1, "backward", 0.25 * WHOLE)),
        lambda: made(extra=late(1, "backward", 0.10 * WHOLE)),
    ),
    "data_imbalance": (lambda: uneven(1e-4), lambda: uneven(1e-5)),
    "comm_bandwidth": (lambda: made(wire_seconds=0.050), lambda: made(wire_seconds=0.010)),
    "comm_latency": (
        lambda: made(wire_seconds=0.050, sizes=[1 << 12] * 200),
        lambda: made(wire_seconds=0.010, sizes=[1 << 12] * 200),
    ),
    "recompute": (
        lambda: made(
            config={"checkpointing": "full"},
            extra=late(None, "backward", 0.03),
            fields=lambda rank, step: {"recompute_seconds": 0.03},
        ),
        lambda: made(config={"checkpointing": "full"}, fields=lambda rank, step: {"recompute_seconds": 0.01}),
    ),
    "optimizer_bound": (
        lambda: made(extra=late(None, "optimizer", 0.03)),
        lambda: made(extra=late(None, "optimizer", 0.008)),
    ),
    "launch_bound": (lambda: calls(4000), lambda: calls(800)),
    "precision_unused": (lambda: calibrated(2.5), lambda: calibrated(1.2)),
    "memory_pressure": (lambda: made(hosts=readings(stall=0.3)), lambda: made(hosts=readings(stall=0.1))),
    "periodic_stall": (lambda: stalls(0.12), lambda: stalls(0.03)),
    "cpu_contention": (lambda: crowded(0.04, others=2.0), lambda: crowded(0.008, others=2.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cause_is_named_where_it_costs_enough(name: str) -> None:
    """With its evidence, what to do, and an interval around what it costs."""
    found = told(CASES[name][0]())
    assert found["verdict"]["label"] == name
    first = found["findings"][0]
    assert first["label"] == name
    assert first["evidence"]
    assert first["next"]["says"]
    low, high = first["ci95"]
    assert low <= first["headroom_seconds"] <= high
    assert found["verdict"]["severity_share"] >= 0.15


@pytest.mark.parametrize("name", CASES)
def test_below_the_threshold_the_run_is_healthy(name: str) -> None:
    """What would buy less than 15 % of the step is no verdict."""
    assert label(CASES[name][1]()) == "healthy"


def test_every_rule_has_a_case_and_a_scenario() -> None:
    """Or says that it cannot occur on CPU; then it has a scenario all the same."""
    found = rules()
    assert {name for name, rule in found.items() if "cpu" not in rule.devices} == ON_CUDA_ALONE
    assert set(CASES) == set(found) - ON_CUDA_ALONE
    assert set(found) <= {each.label for each in scenarios().values()}
    assert all(rule.label == name for name, rule in found.items())


@pytest.mark.parametrize("name", CASES)
def test_a_job_under_its_own_loop_is_told_what_to_change_in_it(name: str) -> None:
    """Its batch sizes may be unknown, and options of `scalelab run` are of no use to it."""
    run = CASES[name][0]()
    unknown = ("micro_batch", "grad_accumulation", "global_batch", "checkpointing", "compile")
    config = {
        "strategy": "own", "launcher": "own", "device": "cpu", "nodes": 1, "model": "tiny", "probe": "on",
        "engine": "own", "record_grad_norm": False, **dict.fromkeys(unknown),
    }  # fmt: skip
    options = {f"--{field.replace('_', '-')}" for field in RunConfig.model_fields}
    ranks = tuple(replace(rank, batches=None) for rank in run.ranks)
    own = replace(run, run_json={**run.run_json, "config": config}, ranks=ranks)
    if name not in ("data_imbalance", "recompute", "precision_unused"):  # of these its records have no sign
        assert label(own) == name
    for finding in told(own)["findings"]:
        assert not finding["next"]["options"]
        assert not set(re.findall(r"--[a-z-]+", finding["next"]["says"])) & options


def disturbed(cost: float) -> Run:
    """Many small messages, and operators that were measured to take `cost` times all of forward."""
    seconds = {"forward": cost * PHASES["forward"] / 100, "backward": cost * 0.1 * PHASES["backward"] / 200}
    counted = MemoryStepRecord(
        step=STEPS, operators={"forward": 100, "backward": 200}, operator_seconds_by_phase=seconds
    )
    return made(wire_seconds=0.040, sizes=[1 << 12] * 400, memory_step=counted)


def test_a_cost_of_operators_that_the_run_has_no_time_for_is_no_firm_evidence() -> None:
    """What was measured on a disturbed host is divided by how much too long it was at least; its interval goes down."""
    found = told(disturbed(2.6))
    assert found["verdict"]["label"] == "comm_latency"
    row = next(row for row in found["findings"] if row["label"] == "launch_bound")
    assert row["evidence"][1]["values"]["measured_too_long"]["backward"] == pytest.approx(2.6, rel=0.02)
    assert row["headroom_seconds"] == pytest.approx(PHASES["forward"] + 0.1 * PHASES["backward"], rel=0.05)
    assert row["ci95"][0] == pytest.approx(row["headroom_seconds"] / 2.6, rel=0.05)


@pytest.mark.parametrize("cost", [1.3, 2.6])
def test_what_an_operator_is_said_to_take_is_what_was_counted(cost: float) -> None:
    """After the cut to the time there is: by phase, calls times that are the seconds that were counted."""
    row = next(row for row in told(disturbed(cost))["findings"] if row["label"] == "launch_bound")
    says = row["evidence"][0]["says"]
    counted = {name: int(calls) * float(each) for name, calls, each in re.findall(r"(\w+) (\d+) of ([\d.]+) us", says)}
    assert sum(counted.values()) * 1e-6 == pytest.approx(row["headroom_seconds"], rel=0.03)
    assert "us (nearly all of its time), backward" in says


def on_device(h2d: float = 0.0, **idle: float) -> dict[str, Any]:
    """The diagnosis of a run on one GPU whose batches take so long to copy, and whose trace of five steps shows so much
    idle time a step."""
    run = made(ranks=1, config={"device": "cuda", "pin": False}, extra=late(None, "h2d", h2d))
    names = ("not_launched", "launching", "loading", "after_sync", "on_device", "unknown")
    device = {
        "compute_seconds": 0.3, "exposed_communication_seconds": 0.0, "exposed_copies_seconds": 0.0,
        "idle": {f"{name}_seconds": 5 * idle.get(name, 0.0) for name in names},
        "launch_delay_seconds": {"median": 6e-6, "p90": 9e-6},
    }  # fmt: skip
    row = {"unusable": None, "cut": False, "steps": [{"seconds": WHOLE}] * 5, "devices": [device]}
    return diagnose(run, {**summarise(run), "trace": {"per_rank": [row]}})


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("h2d_bound", {"h2d": 0.05}),
        ("launch_bound", {"not_launched": 0.04}),
        ("host_sync", {"not_launched": 0.04, "after_sync": 0.03}),
    ],
)
def test_what_holds_a_device_up_is_named_by_its_phase_or_its_trace(name: str, cause: dict[str, float]) -> None:
    """Idle time that follows a wait of the host is the wait's, and no other's; a tenth of it is no verdict."""
    assert on_device(**cause)["verdict"]["label"] == name
    little = on_device(**{key: value / 10 for key, value in cause.items()})
    assert not any(row["counts"] for row in little["findings"])


def test_a_run_without_a_cause_is_healthy() -> None:
    """At one rank, two and four."""
    for ranks in (1, 2, 4):
        assert label(made(ranks=ranks)) == "healthy"


@pytest.mark.parametrize("phase", ["data", "forward", "backward", "optimizer"])
def test_a_straggler_is_named_with_its_phase_and_rank(phase: str) -> None:
    """Also in data and optimizer, which have labels of their own where every rank is slow."""
    found = told(made(ranks=4, extra=late(2, phase, 0.03)))
    assert found["verdict"]["label"] == "straggler_rank"
    assert found["findings"][0]["evidence"][0]["values"]["rank"] == 2
    assert found["findings"][0]["evidence"][1]["values"]["phase"] == phase


def test_what_it_says_is_what_removing_the_cause_recovers() -> None:
    """The stated share against the same run without the cause, to a twentieth."""
    for rank, phase, seconds in ((None, "data", 0.04), (1, "forward", 0.04), (None, "optimizer", 0.05)):
        run, without = made(extra=late(rank, phase, seconds)), made()
        recovered = 1 - float(without.step_seconds.mean()) / float(run.step_seconds.mean())
        others = {"data": 0.001, "optimizer": 0.004}.get(phase, 0.0) / float(run.step_seconds.mean())
        assert told(run)["verdict"]["severity_share"] == pytest.approx(recovered + others, rel=0.05)


def test_uneven_data_is_not_blamed_on_the_rank() -> None:
    """A rank that always has twice the tokens is slow because of them, and its excess is counted once."""
    held = [[1000] * STEPS, [2000] * STEPS]
    run = made(
        extra=lambda rank, step, name: 0.045 * rank if name in ("forward", "backward") else 0.0,
        batches=lambda rank: BatchesRecord(elements=held[rank]),
    )
    found = told(run)
    assert found["verdict"]["label"] == "data_imbalance"
    assert [row["label"] for row in found["findings"] if row["counts"]] == ["data_imbalance"]
    assert label(made(extra=lambda rank, step, name: 0.045 * rank if name == "forward" else 0.0)) == "straggler_rank"


def test_two_causes_are_ranked_by_what_they_cost_and_not_counted_twice() -> None:
    """A late loader on one rank and a slow update on all: each its own; the loader's seconds are the straggler's."""

    def both(rank: int, step: int, name: str) -> float:
        return (0.06 if name == "data" and rank == 1 else 0.0) + (0.04 if name == "optimizer" else 0.0)

    rows = [row for row in told(made(extra=both))["findings"] if row["counts"]]
    assert [row["label"] for row in rows] == ["straggler_rank", "optimizer_bound"]
    assert sum(row["severity_share"] for row in rows) < 0.6


def test_cores_that_the_run_itself_fills_are_no_contention() -> None:
    """Without others on the host, waiting for a core is the run's own doing."""
    assert label(crowded(0.04, others=0.1)) == "healthy"


def test_memory_near_its_limit_is_told_though_it_costs_no_time() -> None:
    """And is no verdict against a cause that does."""
    near = readings(used=round(0.97 * (8 << 30)))
    found = told(made(hosts=near))
    assert found["verdict"]["label"] == "memory_pressure"
    assert found["verdict"]["severity_share"] is None
    assert found["reasons"]["verdict.severity_share"]
    assert label(made(hosts=near, extra=late(None, "data", 0.05))) == "input_bound"


def test_the_collectors_pauses_and_what_comes_every_n_steps_are_stalls() -> None:
    """Within steps as well as between them."""
    collected = made(extra=late(None, "backward", 0.04), fields=lambda rank, step: {"gc_seconds": 0.04})
    assert label(collected) == "periodic_stall"
    every_fifth = made(extra=lambda r, step, name: 0.2 if step % 5 == 0 and name == "forward" else 0.0)
    assert label(every_fifth) == "periodic_stall"
    generator = np.random.default_rng(3)
    places = set(generator.choice(STEPS, 8, replace=False).tolist())
    at_random = made(extra=lambda r, step, name: 0.2 if step in places and name == "forward" else 0.0)
    assert label(at_random) == "healthy"


def unfit() -> dict[str, tuple[Run, str]]:
    short = made(steps=4)
    off = made(config={"probe": "off"})
    lost = made()
    lost = type(lost)(**{**vars_of(lost), "ranks": lost.ranks[:1]})
    return {"short": (short, "--steps"), "probe off": (off, "--probe on"), "a rank lost": (lost, "again")}


def vars_of(run: Run) -> dict[str, Any]:
    names = ("run_id", "run_json", "status", "ranks", "telemetry", "hosts")
    return {name: getattr(run, name) for name in names}


@pytest.mark.parametrize("name", ["short", "probe off", "a rank lost"])
def test_what_cannot_be_told_says_what_to_rerun(name: str) -> None:
    """A run too short, without phases, with a rank's records missing."""
    run, rerun = unfit()[name]
    found = told(run)
    assert found["verdict"]["label"] == "cannot_tell"
    assert rerun in found["cannot_tell"][0]["rerun"]
    # It stands behind the word `rerun:`.
    assert not found["cannot_tell"][0]["rerun"].startswith("it ")
    assert found["verdict"]["severity_share"] is None


def test_an_older_record_without_the_newer_signals_is_still_diagnosed() -> None:
    """What it lacks is said; a cause that is there is named all the same."""

    def older(rank: int, step: int) -> dict[str, Any]:
        return {"gc_seconds": None, "run_delay_seconds": None}

    run = made(extra=late(None, "data", 0.05), fields=older, batches=None, memory_step=COUNTED)
    found = told(run)
    assert found["verdict"]["label"] == "input_bound"
    assert {row["label"] for row in found["cannot_tell"]} == {"cpu_contention", "data_imbalance", "memory_pressure"}
