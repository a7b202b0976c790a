"""A proposed change, tried: both sides in turn, taken up where they were left, and told with what is not known."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scalelab.launch.config import RunConfig
from scalelab.launch.devices import Devices
from scalelab.launch.errors import ConfigError, Exit
from scalelab.launch.plan import resolve
from scalelab.launch.sweep.child import Ended
from scalelab.launch.verification import AS_IS, CHANGED, Change, Verified, change_of, sides, verify
from scalelab.profiles.records import EndRecord, EventRecord
from scalelab.profiles.runfolder import RunFolder, appending

from tests.support.sweeps import run_json, step

CPU = Devices("cpu", 0, "a processor", why_no_cuda="none here")
WORKERS = Change(label="input_bound", options={"workers": 2}, share=0.4, ci95=(0.35, 0.45))
BATCH = Change(label="launch_bound", options={"micro_batch": 16}, share=None, ci95=None)


def facts(**asked: Any) -> dict[str, Any]:
    """run.json of a run of those options."""
    config = resolve(RunConfig(model="tiny", gpus=2, steps=30, **asked), CPU).config
    return {"config": config.model_dump(), "world_size": 2}


def test_a_change_without_a_difference_is_refused() -> None:
    with pytest.raises(ConfigError, match="no difference"):
        sides(facts(workers=2), WORKERS, None, CPU)


class Fake:
    """Makes run folders at once, of 30 steps that take what `seconds(given, number)` says, with losses by
    `loss(given)`. `codes` end the first runs."""

    def __init__(
        self,
        seconds: Callable[[Mapping[str, Any], int], float],
        loss: Callable[[Mapping[str, Any]], float] = lambda given: 1.0,
        codes: tuple[int, ...] = (),
        between: Callable[[Mapping[str, Any]], float] = lambda given: 0.0,
    ) -> None:
        self.seconds, self.loss, self.codes, self.between = seconds, loss, list(codes), between
        self.made: list[Mapping[str, Any]] = []

    def __call__(self, given: Mapping[str, Any], *, out: Path, name: str, **_: Any) -> Ended:
        self.made.append(given)
        folder = RunFolder.create(out, name)
        batch = given["micro_batch"]
        told = run_json(name, 2, micro_batch=batch, global_batch=2 * batch, workers=given.get("workers"))
        folder.write("run.json", {**told, "run_id": folder.run_id})
        code = self.codes.pop(0) if self.codes else 0
        folder.write("status.json", {"state": "failed" if code else "finished", "exit_code": code, "cause": "planted"})
        for rank in range(2):
            with appending(folder.rank_file(rank)) as write:
                for index in range(30):
                    record = step(index, self.seconds(given, len(self.made)), samples=batch)
                    write(type(record)(**{**_fields(record), "losses": [self.loss(given)]}))
                    if (stop := self.between(given)) and index % 2:
                        write(EventRecord(event="checkpoint", step=index, start_seconds=0.0, seconds=stop, values={}))
                write(EndRecord(rss_peak_bytes=(1 << 30) // (1 + (given.get("workers") == 2)) - rank))
        return Ended(code, "planted" if code else None, folder, 1.0)


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def run(place: Path, make: Any, change: Change = WORKERS, rounds: int = 5, **asked: Any) -> Verified:
    return verify(
        facts(**asked), change, out=place, rounds=rounds, steps=None, devices=CPU, stream=io.StringIO(), make=make
    )


def faster(given: Mapping[str, Any], number: int) -> float:
    """A fifth less time with the change, and 2 % of noise."""
    noise = 1 + 0.02 * random.Random(number).gauss(0, 1)
    return (0.08 if given.get("workers") == 2 or given["micro_batch"] == 16 else 0.1) * noise


def same(given: Mapping[str, Any], number: int) -> float:
    return 0.1 * (1 + 0.02 * random.Random(number).gauss(0, 1))


def _noise(generator: np.random.Generator) -> Callable[[Mapping[str, Any], int], float]:
    return lambda given, number: 0.1 * (1 + 0.05 * float(generator.standard_normal()))


def test_a_change_that_helps_is_told_with_its_interval(tmp_path: Path) -> None:
    make = Fake(faster)
    found = run(tmp_path, make).bought
    assert found is not None
    assert found["verdict"] == "faster"
    assert found["ci95"][0] < 0.2 < found["ci95"][1]
    assert found["cause_share"] == 0.4
    assert found["peak_memory"] == {"of": "rss_peak_bytes", "before_bytes": 1 << 30, "after_bytes": 1 << 29}
    assert found["learns"] is None
    assert "neither batch nor precision" in found["reasons"]["learns"]
    # In turn: no side is made whole before the other.
    changed = [given.get("workers") == 2 for given in make.made]
    assert all(sum(changed[2 * each : 2 * each + 2]) == 1 for each in range(5))


def test_one_that_does_nothing_is_seldom_called_better(tmp_path: Path) -> None:
    """Of 60 verifications at 5 rounds no more than the 2.5 % on that side leave room for (binomial, 99.9 %)."""
    called = 0
    for number in range(60):
        found = run(tmp_path / str(number), Fake(_noise(np.random.default_rng(number))))
        assert found.bought is not None
        called += found.bought["verdict"] == "faster"
    assert called <= 6


def test_what_failed_is_made_again_and_what_is_there_is_not(tmp_path: Path) -> None:
    first = run(tmp_path, Fake(same, codes=(0, 5)))
    assert first.bought is None
    assert first.outcome.exit_code == Exit.SOME_FAILED
    again = Fake(same)
    assert run(tmp_path, again).bought is not None
    assert len(again.made) == 1
    more = Fake(same)
    assert run(tmp_path, more, rounds=7).bought is not None
    assert len(more.made) == 4


def test_what_lies_between_steps_is_part_of_what_is_bought(tmp_path: Path) -> None:
    """Checkpoints of 0.3 s behind every second step of 0.1 s, which the change takes away: 60 % of the time."""
    found = run(tmp_path, Fake(same, between=lambda given: 0.0 if given.get("workers") == 2 else 0.3)).bought
    assert found is not None
    assert found["verdict"] == "faster"
    assert found["saved_share"] == pytest.approx(0.6, abs=0.03)
    assert "between" in found["counts"]


def test_a_round_that_was_asked_for_before_and_failed_stops_no_smaller_number(tmp_path: Path) -> None:
    run(tmp_path, Fake(same, codes=(0,) * 12 + (5,)), rounds=7)
    assert run(tmp_path, Fake(same), rounds=5).bought is not None


def test_the_latest_run_stays_the_latest_and_each_round_has_its_seed(tmp_path: Path) -> None:
    """A second call finds the same run under `latest`; both sides of a round have one seed, and no other round has."""
    (tmp_path / "latest").symlink_to("a-run")
    make = Fake(same)
    run(tmp_path, make)
    assert (tmp_path / "latest").readlink() == Path("a-run")
    seeds = [given["seed"] for given in make.made]
    assert seeds == [number for number in range(5) for _ in range(2)]


def test_other_surroundings_are_other_runs(tmp_path: Path) -> None:
    """Runs with a neighbour on their cores are not taken for runs without."""
    first = verify(facts(), WORKERS, out=tmp_path, rounds=2, steps=None, devices=CPU, stream=io.StringIO(),
                   make=Fake(same), around="noisy_neighbour 0")  # fmt: skip
    again = Fake(same)
    assert run(tmp_path, again, rounds=2).folder != first.folder
    assert len(again.made) == 4


def test_a_change_that_trains_something_else_is_not_called_faster(tmp_path: Path) -> None:
    found = run(tmp_path, Fake(faster, loss=lambda given: 1.5 if given.get("workers") == 2 else 1.0)).bought
    assert found is not None
    assert found["verdict"] == "cannot tell"
    assert "something else" in found["reasons"]["verdict"]


def test_a_larger_batch_is_held_against_the_loss_after_as_many_samples(tmp_path: Path) -> None:
    """Per sample, and worse where the loss is a fifth higher in every round."""
    found = run(tmp_path, Fake(faster, loss=lambda given: 1.2 if given["micro_batch"] == 16 else 1.0), BATCH).bought
    assert found is not None
    assert found["per"] == "sample"
    assert found["verdict"] == "faster"
    assert found["saved_share"] == pytest.approx(1 - 0.8 / 4, abs=0.05)
    assert (found["learns"]["verdict"], found["learns"]["samples"]) == ("worse", 7 * 32)  # whole steps of both
    assert found["learns"]["higher_share"] == pytest.approx(0.2)
    assert "no matter of time" in found["reasons"]["cause_share"]
    as_well = run(tmp_path / "b", Fake(faster), BATCH).bought
    assert as_well is not None
    assert as_well["learns"]["verdict"] == "as well"


def test_both_sides_are_the_run_but_for_the_change(tmp_path: Path) -> None:
    """Every option that was asked for is asked for again, and none that the run chose by itself."""
    asked = facts(strategy="zero2", lr=3e-4, seed=7, checkpointing="full", counterfactual=True)
    before, after = sides(asked, WORKERS, None, CPU)
    assert (before.cell.name, after.cell.name) == (AS_IS, CHANGED)
    assert after.given == {**before.given, "workers": 2}
    for name in ("strategy", "lr", "seed", "checkpointing"):
        assert before.given[name] == asked["config"][name]
    assert {"counterfactual", "pin", "bucket_mb", "out", "name"}.isdisjoint(before.given)
    ignored = {"out", "name", "memory_step", "counterfactual"}
    resolved = {name: value for name, value in before.cell.config.items() if name not in ignored}
    assert resolved == {name: value for name, value in asked["config"].items() if name not in ignored}
    assert (
        sides(facts() | {"config": {**facts()["config"], "steps": 5000}}, WORKERS, None, CPU)[0].given["steps"] == 100
    )


def finding(**more: Any) -> dict[str, Any]:
    row = {"label": "input_bound", "counts": True, "severity_share": 0.4, "ci95": [0.03, 0.05]}
    return {**row, "next": {"says": "do it", "options": {"workers": 2}}, **more}


def diagnosis(*findings: dict[str, Any]) -> dict[str, Any]:
    return {"verdict": {"step_seconds": 0.1}, "findings": list(findings)}


def test_the_change_is_that_of_the_largest_cause_that_an_option_removes() -> None:
    by_hand = finding(label="straggler_rank", next={"says": "look at rank 1", "options": {}})
    change = change_of(diagnosis(by_hand, finding(), finding(label="recompute")))
    assert (change.label, change.options, change.share) == ("input_bound", {"workers": 2}, 0.4)
    assert change.ci95 == pytest.approx((0.3, 0.5))
    with pytest.raises(ConfigError, match="look at rank 1"):
        change_of(diagnosis(by_hand, finding(counts=False)))
    with pytest.raises(ConfigError, match="nothing to verify"):
        change_of(diagnosis())


@pytest.mark.parametrize(
    ("config", "words"), [({"engine": "own"}, "did not start"), ({"nodes": 2}, "2 hosts"), ({}, "did not start")]
)
def test_a_run_that_cannot_be_made_again_is_refused(config: dict[str, Any], words: str) -> None:
    """It says how the change can be tried by hand."""
    told = facts()
    told = {**told, "config": {**told["config"], **config}} | ({} if config else {"source": "imported"})
    with pytest.raises(ConfigError, match=words) as caught:
        sides(told, WORKERS, None, CPU)
    assert "--workers 2" in caught.value.hint
    assert "scalelab compare" in caught.value.hint
