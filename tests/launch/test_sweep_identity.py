"""What makes a sweep this one: all that decides its figures, and nothing that this machine only lacks today."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scalelab.launch.devices import Devices
from scalelab.launch.sweep.matrix import cells, sweep_id
from scalelab.launch.text import HIDDEN

from tests.launch.test_sweep_matrix import CPU, CUDA, asked

MODEL = "def build_model(**options): ...\ndef example_batch(size, **options): ...\n"


def identity(*argv: str, devices: Devices = CPU) -> str:
    found = asked(*argv)
    return sweep_id(cells(found, devices), found, devices)


def test_a_cell_that_cannot_be_had_is_refused_and_stops_no_other() -> None:
    """Also one that could not be even where the cards were there: `single` on two of them."""
    one = replace(CUDA, count=1)
    found = cells(asked("--strategies=single,ddp", "--gpus=1,2", "--scaling=weak"), one)
    refused = {(each.cell.strategy, each.cell.world_size) for each in found if each.cell.refused}
    assert refused == {("single", 2), ("ddp", 2)}
    assert len(found) == 4


def test_a_sweep_is_the_same_once_the_cards_are_there() -> None:
    """Cells of eight ranks were refused on four cards; with eight, the runs that were made are found again."""
    argv = ("--strategies=ddp", "--gpus=4,8")
    assert identity(*argv, devices=CUDA) == identity(*argv, devices=replace(CUDA, count=8))


def test_threads_and_cores_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("--strategies=ddp", "--gpus=1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = identity(*argv)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert identity(*argv) != before


def test_a_secret_of_the_model_is_in_no_plan_and_part_of_what_is_trained(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(MODEL)
    argv = (f"--model={tmp_path / 'm.py'}", "--strategies=ddp", "--gpus=1")
    found = cells(asked(*argv, "--model-option=api_key=abcdefgh"), CPU)
    assert found[0].cell.config["model_option"] == {"api_key": HIDDEN}
    assert found[0].given["model_option"] == {"api_key": "abcdefgh"}
    assert identity(*argv, "--model-option=api_key=a") != identity(*argv, "--model-option=api_key=b")
