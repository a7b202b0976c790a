"""Scenarios on disk: two sides of a real run that differ by the fault alone, drawn by a seed, refused by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from scalelab.data.spec import DatasetSpec
from scalelab.launch.config import RunConfig
from scalelab.launch.errors import PreflightError
from scalelab.launch.scenarios import _run, _subject, scenarios
from scalelab.launch.scenarios._contract import Planted
from scalelab.profiles.analysis.diagnosis.rules import rules

ALL = scenarios()
HERE = [name for name, each in ALL.items() if each.why_not() is None]
FAULTS = [name for name in HERE if ALL[name].remove is not None]
LEAST = 16


@pytest.fixture(autouse=True)
def _no_data_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options name a data set; nobody reads it here."""

    def ensured(spec: DatasetSpec, **_: Any) -> Path:
        return Path(f"/data/{spec.width}x{spec.height}")

    for name in ALL:
        module = importlib.import_module(f"scalelab.launch.scenarios.{name}")
        if hasattr(module, "ensure_dataset"):
            monkeypatch.setattr(module, "ensure_dataset", ensured)


def sides(name: str) -> list[tuple[Planted, Planted | None]]:
    """With and without the fault: weakest and strongest, at each number of ranks."""
    each = ALL[name]
    return [
        (each.plant(strength, world), None if each.remove is None else each.remove(strength, world))
        for strength in each.strengths
        for world in each.world_sizes
    ]


def test_there_are_scenarios_for_every_label_and_healthy_ones() -> None:
    assert len(ALL) >= LEAST
    assert {each.label for each in ALL.values()} == {*rules(), "healthy"}
    assert ALL["healthy"].world_sizes == (1, 2, 4)


@pytest.mark.parametrize("name", ALL)
def test_a_seed_draws_the_strength_within_its_bounds(name: str) -> None:
    """The same seed the same one, another seed another one."""
    each = ALL[name]
    low, high = each.strengths
    drawn = [each.strength(seed) for seed in range(20)]
    assert drawn == [each.strength(seed) for seed in range(20)]
    assert all(low <= strength <= high for strength in drawn)
    assert len(set(drawn)) > 1 or low == high
    assert each.name == name


@pytest.mark.parametrize("name", ALL)
def test_the_strength_that_is_told_is_the_one_that_is_planted(name: str) -> None:
    """Where it is planted as a whole number, it is one; rounding it to what is told changes nothing."""
    each = ALL[name]
    strength, world = each.strength(1), each.world_sizes[0]
    told = float(each.told(strength).split()[0].replace(",", ""))
    if each.whole is None:
        assert told == pytest.approx(strength, rel=1e-2)
    else:
        assert told == strength
    neighbours = {each.whole(strength + more) if each.whole else strength for more in (0.0, 0.2)}
    assert neighbours == {strength}
    if name in ("small_buckets", "periodic_stall"):
        assert each.plant(strength, world).options["model_option"]["layers"] == told


@pytest.mark.parametrize("name", HERE)
def test_both_sides_are_runs_of_scalelab(name: str) -> None:
    """Each option is one of `scalelab run`, with a value that it allows; model options are the subject's own."""
    for planted in [side for pair in sides(name) for side in pair if side is not None]:
        config = RunConfig(**planted.options)
        if str(config.model).endswith("_subject.py"):
            taken = {
                option
                for function in (_subject.build_model, _subject.build_loader, _subject.example_batch)
                for option in function.__code__.co_varnames[: function.__code__.co_argcount]
            }
            assert set(config.model_option) <= taken


@pytest.mark.parametrize("name", FAULTS)
def test_the_sides_differ_by_the_fault_alone(name: str) -> None:
    """By a few options, or by what is around the run; never by seed, steps or ranks."""
    for planted, removed in sides(name):
        assert removed is not None
        a, b = ({**side.options, **side.options.get("model_option", {})} for side in (planted, removed))
        differing = {key for key in {*a, *b} - {"model_option"} if a.get(key) != b.get(key)}
        assert not differing & {"seed", "steps", "warmup", "gpus", "model", "strategy"}
        assert len(differing) <= 3
        assert differing or planted.around is not removed.around


@pytest.mark.parametrize("name", [name for name, each in ALL.items() if each.devices == ("cuda",)])
def test_what_needs_a_gpu_is_refused_without_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="needs cuda"):
        _run.run_scenario(ALL[name], seed=0, world_size=1, device="cpu", out=tmp_path, say=print)
    assert not list(tmp_path.iterdir())
