"""Numbers of a card that seem to differ are explained where they stand."""

from __future__ import annotations

import pytest
from scalelab.profiles.analysis.diagnosis.bought import others_cores_share
from scalelab.profiles.records import EventRecord

from tests.profiles.diagnosis.made import STEPS, made, readings, told


def test_what_contention_would_buy_is_what_the_slowest_rank_of_each_step_waited() -> None:
    """Ranks wait by turns: each half as long on average as what a step would be shorter."""

    def waited(rank: int, step: int) -> float:
        return 0.1 if step % 2 == rank else 0.0

    found = told(
        made(
            extra=lambda rank, step, name: waited(rank, step) if name == "forward" else 0.0,
            hosts=readings(others=2.0),
            fields=lambda rank, step: {"run_delay_seconds": waited(rank, step)},
        )
    )
    first = found["findings"][0]
    assert first["label"] == "cpu_contention"
    by_name = {name: each for row in first["evidence"] for name, each in row["values"].items()}
    assert by_name["run_delay_seconds"] == pytest.approx(0.05)
    assert by_name["slowest_seconds"] == pytest.approx(0.1)
    assert first["headroom_seconds"] == pytest.approx(0.1, rel=0.05)
    assert any("the slowest of each counts" in row["says"] for row in first["evidence"])


def test_how_rare_checkpoints_are_to_be_is_said_with_its_reason() -> None:
    """Also that this run is too short for it."""
    events = [EventRecord(event="checkpoint", step=step, start_seconds=0.0, seconds=0.5) for step in range(4, STEPS, 5)]
    found = told(made(events=events, config={"save_every": 5, "steps": STEPS}))
    row = found["findings"][0]
    every = row["next"]["options"]["save_every"]
    assert every > STEPS
    assert f"--save-every {every} (a longer run's: this one has {STEPS} steps)" in row["next"]["says"]
    assert "at most 3% of the time" in row["next"]["says"]


def test_how_busy_others_kept_the_cores_is_a_mean_over_runs() -> None:
    busy, quiet = made(hosts=readings(others=2.0)), made(hosts=readings())
    assert others_cores_share([busy]) == pytest.approx(0.5)
    assert others_cores_share([busy, quiet, made()]) == pytest.approx(0.25)
    assert others_cores_share([made()]) is None
