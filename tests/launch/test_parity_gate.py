"""The gate that compares losses and gradient norms lets nothing through that trains something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from scalelab.launch.ranks import Rank
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._contract import Sharded
from scalelab.launch.strategies._native import NativeSharded
from scalelab.profiles.analysis.parity import TOLERANCES, deviations
from scalelab.profiles.records import StepRecord

from tests.support.micro_model import WIDTH
from tests.support.ranks import run_ranks
from tests.support.training import (
    MICRO_BATCH,
    combined,
    micro,
    micro_batches,
    records_of,
    reference,
    sharded,
    tolerance,
)

SETTING = Setting(world_size=2, device="cpu", micro_batch=MICRO_BATCH, lr=1e-3, bucket_mb=25.0, overlap=True)


def never_reduce(run: Sharded) -> None:
    assert isinstance(run, NativeSharded)
    set_sync = run._set_sync
    run._set_sync = lambda sync: set_sync(False)


def sum_for_average(run: Sharded) -> None:
    backward = run.backward
    run.backward = lambda loss, last: backward(loss * run.setting.world_size, last)


def clip_at_one(run: Sharded) -> None:
    run.setting = replace(run.setting, clip_norm=1.0)


def freeze_one(run: Sharded) -> None:
    last = run.param_groups[0]["params"].pop()
    assert last.numel() == 1


def healthy(run: Sharded) -> None:
    pass


FAULTS: dict[str, Callable[[Sharded], None]] = {
    "healthy": healthy,
    "gradients never reduced": never_reduce,
    "summed for averaged": sum_for_average,
    "clipped at 1.0": clip_at_one,
    "one parameter frozen": freeze_one,
    "one rank's data repeated": healthy,
}


def train_with_faults(rank: Rank) -> dict[tuple[str, str], list[StepRecord]]:
    """The step records of this rank by fault and optimizer."""
    found = {}
    for optimizer in ("adamw", "sgd"):
        setting = replace(SETTING, optimizer=optimizer)
        for name, plant in FAULTS.items():
            run = sharded("ddp", setting, WIDTH)
            plant(run)
            source = 0 if name == "one rank's data repeated" else rank.rank
            found[name, optimizer] = records_of(run, micro_batches(source, setting))
    return found


Ranks = list[dict[tuple[str, str], list[StepRecord]]]


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return run_ranks(train_with_faults, 2)


def test_planted_faults_are_caught_and_health_is_not(ranks: Ranks) -> None:
    """Each fault leaves the tolerance under AdamW and under SGD; the healthy run does not."""
    for optimizer in ("adamw", "sgd"):
        expected = reference(replace(SETTING, optimizer=optimizer), micro(WIDTH)[0])
        for name in FAULTS:
            found = combined([rank[name, optimizer] for rank in ranks])
            rows = deviations(found, expected, tolerance=TOLERANCES["fp32"])
            assert bool(rows) == (name != "healthy"), f"{name} under {optimizer}: {rows}"


def test_the_loss_alone_is_blind_under_adamw(ranks: Ranks) -> None:
    """Why gradient norms are compared too: doubled gradients move AdamW's losses by less than 1e-5."""
    expected = reference(replace(SETTING, optimizer="adamw"), micro(WIDTH)[0])
    found = combined([rank["summed for averaged", "adamw"] for rank in ranks])
    assert [row.series for row in deviations(found, expected, tolerance=TOLERANCES["fp32"])] == ["grad_norm"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "bf16-params"])
def test_computing_in_fp32_instead_is_caught(precision: str, optimizer: str) -> None:
    """A library that silently falls back to fp32 leaves the tolerance of each lower precision."""
    asked = replace(SETTING, precision=precision, optimizer=optimizer)
    found = reference(replace(asked, precision="fp32"), micro(WIDTH)[0])
    assert deviations(found, reference(asked, micro(WIDTH)[0]), tolerance=tolerance(asked))


@pytest.mark.parametrize(
    ("found", "expected", "rows"),
    [
        ([1.0, 2.0], [1.0, 2.0], []),
        ([1.0, 2.0], [1.0, 2.0 * (1 + 2e-5)], [1]),
        ([1.0], [1.0, 2.0], [1]),
        ([1.0, 2.0, 3.0], [1.0, 2.0], [2]),
        ([None], [None], []),
        ([None], [1.0], [0]),
        ([float("inf")], [1.0], [0]),
        ([float("nan")], [1.0], [0]),
    ],
)
def test_a_deviation_is_any_difference(
    found: list[float | None], expected: list[float | None], rows: list[int]
) -> None:
    """Missing, surplus and unknown values deviate; the first step that does is named."""
    assert [row.step for row in deviations({"loss": found}, {"loss": expected}, tolerance=1e-5)] == rows
