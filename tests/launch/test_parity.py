"""Every strategy on disk trains the same thing as one process: losses and gradient norms, step by step."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from scalelab.launch import strategies
from scalelab.launch.build import prepare, shape_of
from scalelab.launch.devices import Devices
from scalelab.launch.errors import NumericError
from scalelab.launch.ranks import Rank
from scalelab.launch.refusals import lacks
from scalelab.launch.setting import Setting
from scalelab.models import driving
from scalelab.profiles.analysis.parity import TOLERANCES, deviations
from scalelab.profiles.records import StepRecord

from tests.support.micro_model import KINDS, WIDTH
from tests.support.ranks import run_ranks
from tests.support.training import (
    MICRO_BATCH,
    STEPS,
    combined,
    micro,
    micro_batches,
    records_of,
    reference,
    sharded,
    supported,
    tolerance,
    train_on_rank,
)

BASE = Setting(world_size=1, device="cpu", micro_batch=MICRO_BATCH, lr=1e-3)
MATRIX = [
    replace(BASE, precision=precision, checkpointing=checkpointing, accumulation=accumulation, optimizer=optimizer)
    for precision, checkpointing, accumulation, optimizer in itertools.product(
        ("fp32", "bf16"), ("none", "full", "selective"), (1, 2), ("adamw", "sgd")
    )
]
MORE = [
    replace(BASE, **options)
    for options in (
        {"precision": "bf16-params"},
        {"precision": "bf16-params", "accumulation": 2, "clip_norm": 0.1},
        {"precision": "fp16"},
        {"precision": "fp16", "accumulation": 2, "clip_norm": 0.1},
        {"clip_norm": 0.1},
        {"clip_norm": 0.1, "accumulation": 3},
        {"accumulation": 2, "accumulation_sync": "each"},
        {"bucket_mb": 0.0001},
        {"bucket_mb": 0.0001, "overlap": False, "accumulation": 2},
    )
]
ENGINES = [(name, engine) for name in strategies.names() for engine in strategies.load(name).engines]
# Of a test that takes its time, those whose code others run as well are among the slow ones.
RELATED = {("zero1", "native"), ("ddp", "accelerate"), ("fsdp2", "accelerate")}
FEWER = [pytest.param(*each, marks=pytest.mark.slow if each in RELATED else ()) for each in ENGINES]


def check(name: str, world_size: int, cases: list[Setting], width: int, kind: str = "plain") -> None:
    """All cases on `world_size` ranks, started once, against one process each."""
    by_rank = run_ranks(train_on_rank, world_size, name, cases, width, kind)
    failures = []
    for index, case in enumerate(cases):
        found = combined([rank[index] for rank in by_rank])
        expected = reference(case, micro(width, kind)[0])
        rows = deviations(found, expected, tolerance=tolerance(case))
        failures += [f"{row} under {case}" for row in rows]
    assert not failures, "\n".join(failures)


def pairwise(cases: list[Setting]) -> list[Setting]:
    """Few of `cases` in which any two options that meet in one of them meet: at each time that with the most new."""

    def pairs(case: Setting) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
        varied = ("precision", "checkpointing", "accumulation", "optimizer")
        return set(itertools.combinations([(name, getattr(case, name)) for name in varied], 2))

    chosen: list[Setting] = []
    missing = set().union(*map(pairs, cases))
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


PAIRS = pairwise(MATRIX)
ON_FOUR = [next(case for case in PAIRS if case.accumulation > 1 and case.optimizer == "adamw")]


@pytest.mark.parametrize(
    ("world_size", "base"),
    [
        pytest.param(1, MATRIX[:2], id="1"),
        pytest.param(2, PAIRS, id="2"),
        pytest.param(2, [case for case in MATRIX if case not in PAIRS], marks=pytest.mark.slow, id="2-rest"),
        pytest.param(4, ON_FOUR, id="4"),
        pytest.param(4, [case for case in MATRIX if case not in ON_FOUR], marks=pytest.mark.slow, id="4-rest"),
    ],
)
@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_same_training_as_one_process(name: str, engine: str, world_size: int, base: list[Setting]) -> None:
    """Precision, checkpointing, accumulation and optimizer on two ranks, in any two together, one of them on four,
    where it takes twice the time; on one rank, the first of them. All of them where time does not matter."""
    if engine != "native" and world_size != 2:
        pytest.skip("engines other than native are compared on two ranks")
    cases = [replace(case, world_size=world_size, engine=engine) for case in base]
    cases = supported(strategies.load(name), cases)
    if not cases:
        pytest.skip(f"{name}: {strategies.load(name).unsupported(replace(BASE, world_size=world_size))}")
    check(name, world_size, cases, WIDTH)


# SGD sees what AdamW hides: gradients that are all twice too large, or not reduced.
@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_same_training_with_every_other_option(name: str, engine: str, optimizer: str) -> None:
    """Short weights with a master, loss scaling, clipping, many buckets, no overlap, reductions per micro-batch."""
    strategy = strategies.load(name)
    world_size = 1 if strategy.unsupported(replace(BASE, world_size=2)) else 2
    cases = supported(
        strategy, [replace(case, world_size=world_size, engine=engine, optimizer=optimizer) for case in MORE]
    )
    check(name, world_size, cases, WIDTH)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_models_of_other_shapes_train_the_same(name: str, engine: str, kind: str) -> None:
    """Frozen parts before the blocks, blocks called by name, tied weights (or they are refused)."""
    strategy = strategies.load(name)
    world_size = 1 if strategy.unsupported(replace(BASE, world_size=2)) else 2
    base = replace(BASE, world_size=world_size, engine=engine)
    cases = supported(strategy, [base, replace(base, checkpointing="selective", precision="bf16", accumulation=2)])
    if reason := strategy.unsupported_model(shape_of(*micro(WIDTH, kind))):
        assert (kind, "tied across blocks" in reason) == ("tied", True)
        return
    check(name, world_size, cases, WIDTH, kind)


def spiked_on_rank(rank: Rank, name: str, setting: Setting) -> str:
    batches = micro_batches(rank.rank, setting)
    if rank.rank == rank.world_size - 1:
        batches[2]["spike"] = torch.ones(1)
    seen: list[StepRecord] = []
    try:
        seen = records_of(sharded(name, setting, WIDTH), batches)
    except NumericError as error:
        return str(error)
    return f"losses {[record.losses for record in seen]}"


@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_a_gradient_that_is_not_finite_is_never_trained_past(name: str, engine: str) -> None:
    """It is an error, or the next loss is not finite, which ends a run: under no strategy is the update left out in
    silence, but where fp16 scales losses."""
    strategy = strategies.load(name)
    world_size = 1 if strategy.unsupported(replace(BASE, world_size=2)) else 2
    base = replace(BASE, world_size=world_size, engine=engine)
    for setting in supported(strategy, [base, replace(base, precision="bf16-params")]):
        for text in run_ranks(spiked_on_rank, world_size, name, setting):
            assert "a gradient is not finite" in text or text.count("None") == 7, text


GROWTH_INTERVAL = 3


def scaled_on_rank(rank: Rank, name: str, cases: list[Setting]) -> list[list[StepRecord]]:
    from scalelab.launch.strategies import _zero_scaler

    _zero_scaler.GROWTH_INTERVAL = GROWTH_INTERVAL
    return train_on_rank(rank, name, cases, WIDTH)


@pytest.mark.parametrize("name", [name for name in strategies.names() if name.startswith("zero")])
def test_zero_scales_losses_as_torch_does(name: str) -> None:
    """fp16 under DeepSpeed is for CUDA, but its loss scaling can run here: overflows skipped, the scale grown again."""
    options = {"precision": "fp16", "bucket_mb": 25.0, "overlap": False}
    base = replace(BASE, world_size=2, accumulation_sync=strategies.load(name).accumulation_syncs[0], **options)
    cases = [base, replace(base, accumulation=2, clip_norm=0.1), replace(base, optimizer="sgd")]
    by_rank = run_ranks(scaled_on_rank, 2, name, cases)
    for index, case in enumerate(cases):
        found = combined([rank[index] for rank in by_rank])
        expected = reference(case, micro(WIDTH)[0], growth_interval=GROWTH_INTERVAL)
        assert not deviations(found, expected, tolerance=TOLERANCES["fp16"]), case
        skipped = [record.step for record in by_rank[0][index] if record.skipped]
        assert skipped == [step for step, norm in enumerate(expected["grad_norm"]) if norm is None]
        assert skipped


def tiny_batches(rank: int, setting: Setting) -> list[Any]:
    """The first micro-batches of each rank, of the built-in model's `tiny` preset."""
    return [driving.example_batch(1, preset="tiny", seed=10 * rank + step) for step in range(STEPS)]


def tiny_on_rank(rank: Rank, name: str, setting: Setting) -> list[StepRecord]:
    torch.manual_seed(0)
    model = driving.build_model("tiny")
    blocks = driving.blocks(model)
    prepare(model, blocks, "tiny", setting)
    return records_of(strategies.load(name).shard(model, setting, blocks), tiny_batches(rank.rank, setting))


@pytest.mark.parametrize(("name", "engine"), FEWER)
def test_the_real_model_trains_the_same(name: str, engine: str) -> None:
    """The `tiny` preset: convolutions, attention, embeddings and five branches, over ten steps of AdamW."""
    strategy = strategies.load(name)
    world_size = 1 if strategy.unsupported(replace(BASE, world_size=2)) else 2
    (setting,) = supported(strategy, [replace(BASE, world_size=world_size, engine=engine, micro_batch=1)])
    found = combined(run_ranks(tiny_on_rank, world_size, name, setting))
    torch.manual_seed(0)
    expected = reference(setting, driving.build_model("tiny"), tiny_batches)
    assert not deviations(found, expected, tolerance=TOLERANCES["fp32"])


def compiled_on_rank(rank: Rank, name: str, cases: list[Setting]) -> tuple[list[list[StepRecord]], int, int]:
    """Records, and how many graphs were compiled and broken."""
    from torch._dynamo.utils import counters

    records = train_on_rank(rank, name, cases, WIDTH)
    return records, counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@pytest.mark.parametrize(("name", "engine"), FEWER)
def test_compiled_blocks_train_the_same(name: str, engine: str) -> None:
    """torch.compile really compiles each block, whole, under every wrapper, with recomputation inside."""
    strategy = strategies.load(name)
    world_size = 1 if strategy.unsupported(replace(BASE, world_size=2)) else 2
    base = replace(BASE, world_size=world_size, engine=engine, compile=True, checkpointing="selective")
    (setting,) = supported(strategy, [base])
    if reason := lacks(setting, strategy, Devices("cpu", 0, "cpu")):
        pytest.skip(reason[0])
    ranks = run_ranks(compiled_on_rank, world_size, name, [setting])
    found = combined([records[0] for records, _, _ in ranks])
    assert not deviations(found, reference(setting, micro(WIDTH)[0]), tolerance=TOLERANCES["fp32"])
    for _, graphs, breaks in ranks:
        assert (graphs > 0, breaks) == (True, 0)


def losses_on_rank(rank: Rank, name: str, cases: list[Setting]) -> list[list[float | None]]:
    torch.use_deterministic_algorithms(True)
    return [
        [loss for record in records for loss in record.losses] for records in train_on_rank(rank, name, cases, WIDTH)
    ]


@pytest.mark.parametrize(("name", "engine"), FEWER)
def test_the_same_run_twice_is_the_same_bit_for_bit(name: str, engine: str) -> None:
    """With deterministic kernels, ranks started anew repeat every loss exactly."""
    strategy = strategies.load(name)
    world_size = 1 if strategy.unsupported(replace(BASE, world_size=2)) else 2
    base = replace(BASE, world_size=world_size, engine=engine)
    cases = supported(strategy, [base, replace(base, precision="bf16", checkpointing="full", accumulation=2)])
    first, second = (run_ranks(losses_on_rank, world_size, name, cases) for _ in range(2))
    assert first == second
