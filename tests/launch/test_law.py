"""Every strategy on disk holds and sends what its law states, to the byte."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import msgspec
import pytest
import torch
from scalelab.launch import strategies
from scalelab.launch.build import shape_of
from scalelab.launch.precision import PRECISIONS
from scalelab.launch.ranks import Rank
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._contract import Sharded
from scalelab.profiles.capture.memory import model_state, storage_bytes
from torch.distributed.fsdp import FSDPModule

from tests.support.micro_model import WIDTHS
from tests.support.ranks import recorder, run_ranks
from tests.support.training import MICRO_BATCH, micro, micro_batches, sharded, supported
from tests.support.witness import ON_GLOO, Witness

BASE = Setting(world_size=1, device="cpu", micro_batch=MICRO_BATCH)
CASES = [
    BASE,
    replace(BASE, optimizer="sgd"),
    replace(BASE, precision="bf16", checkpointing="full"),
    replace(BASE, precision="bf16-params", accumulation=2),
    replace(BASE, precision="bf16-params", optimizer="sgd", clip_norm=0.1),
    replace(BASE, precision="fp16", checkpointing="selective", accumulation=2),
    replace(BASE, clip_norm=0.1, accumulation=2, accumulation_sync="each"),
    replace(BASE, accumulation=3, bucket_mb=0.2, overlap=False),
]
ENGINES = [(name, engine) for name in strategies.names() for engine in strategies.load(name).engines]
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measured_on_rank(rank: Rank, name: str, cases: list[tuple[Setting, int]]) -> list[dict[str, Any]]:
    """Bytes of model state, its dtypes, and payload by phase, at the third step of each case."""
    found = []
    for setting, width in cases:
        run, batches = sharded(name, setting, width), iter(micro_batches(rank.rank, setting))
        found.append([one_step(run, batches) for _ in range(3)][-1])
        run.close()
    return found


def one_step(run: Sharded, batches: Iterator[Any]) -> dict[str, Any]:
    witness = Witness()
    sent: dict[str, Counter[str]] = {"forward": Counter(), "backward": Counter(), "optimizer": Counter()}
    found: dict[str, Any] = {}
    recorder.open()
    for micro_step in range(run.setting.accumulation):
        last = micro_step == run.setting.accumulation - 1
        recorder.phase = "forward"
        loss = run.forward(next(batches), last)
        sent["forward"] += Counter(witness.payload_bytes())
        recorder.phase = "backward"
        run.backward(loss, last)
        sent["backward"] += Counter(witness.payload_bytes())
        if last:
            held = run.state()
            bytes_held = msgspec.structs.asdict(model_state(0, held))
            found["state"] = {kind: bytes_held[f"{kind}_bytes"] for kind in held}
            held = {**held, "parameters": list(run.parameters())}
            # A tensor without dimensions is a count of steps; an empty one is a parameter that is elsewhere now.
            found["dtypes"] = {
                kind: {str(t.dtype) for t in held[kind] if t.is_floating_point() and t.dim()} for kind in held
            }
        recorder.phase = "optimizer"
        run.step(last)
        sent["optimizer"] += Counter(witness.payload_bytes())
    return {**found, "sent": {phase: dict(row) for phase, row in sent.items()}, "recorded": recorded()}


def recorded() -> dict[str, dict[str, int]]:
    """Payload by phase and kind of the step that the recorder has open, as its record says."""
    _, record = recorder.record(recorder.close(), 0, 0)
    found: dict[str, Counter[str]] = {}
    for collective in recorder.plan(record.plan).collectives:
        if collective.payload_bytes:
            found.setdefault(str(collective.phase), Counter())[collective.kind] += collective.payload_bytes
    return {phase: dict(row) for phase, row in found.items()}


@pytest.mark.parametrize(
    ("world_size", "every"), [(1, False), (2, False), (3, False), pytest.param(2, True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_state_and_payload_equal_the_law(name: str, engine: str, world_size: int, every: bool) -> None:
    """Live bytes of parameters, gradients and optimizer on every rank, and payload by phase and kind.

    The first case in all three shapes, the others in one after another; `every` case in all, where time does not
    matter.
    """
    strategy = strategies.load(name)
    settings = supported(strategy, [replace(case, world_size=world_size, engine=engine) for case in CASES])
    if not settings:
        pytest.skip(f"{name}: {strategy.unsupported(replace(BASE, world_size=world_size))}")
    cases = [(settings[0], width) for width in WIDTHS]
    cases += [(setting, WIDTHS[number % len(WIDTHS)]) for number, setting in enumerate(settings[1:])]
    if every:
        cases = [(setting, width) for setting in settings for width in WIDTHS]
    failures = []
    for rank, results in enumerate(run_ranks(measured_on_rank, world_size, name, cases)):
        for (setting, width), result in zip(cases, results, strict=True):
            law = strategy.law(shape_of(*micro(width)), setting)
            expected = asdict(law.ranks[rank])
            sent: dict[str, Counter[str]] = {phase: Counter() for phase in ("forward", "backward", "optimizer")}
            stated: dict[str, Counter[str]] = {}
            for collective in law.collectives:
                row = stated.setdefault(collective.phase, Counter())
                row[collective.kind] += collective.payload_bytes_per_step
                kind = ON_GLOO.get(collective.kind, collective.kind)
                sent[collective.phase][kind] += collective.payload_bytes_per_step
            where = f"rank {rank}, width {width}, {setting}"
            if result["state"] != expected:
                failures.append(f"state {result['state']}, law {expected}: {where}")
            if world_size > 1 and result["sent"] != {phase: dict(row) for phase, row in sent.items()}:
                failures.append(f"sent {result['sent']}, law {sent}: {where}")
            if world_size > 1 and result["recorded"] != {phase: dict(row) for phase, row in stated.items()}:
                failures.append(f"recorded {result['recorded']}, law {stated}: {where}")
            precision = PRECISIONS[setting.precision]
            for kind, dtype in (("parameters", precision.param), ("gradients", precision.grad), ("optimizer", "fp32")):
                if result["dtypes"][kind] != {str(TORCH_DTYPES[dtype])}:
                    failures.append(f"{kind} in {result['dtypes'][kind]}, precision says {dtype}: {where}")
    assert not failures, f"{len(failures)} failures\n" + "\n".join(failures[:12])


def gathered_ahead(rank: Rank, setting: Setting, width: int) -> dict[str, Any]:
    """A step of ZeRO-3 that gathers ahead as on CUDA."""
    from scalelab.launch.strategies import zero3

    ahead = zero3.prefetch_elements(shape_of(*micro(width)), replace(setting, device="cuda", overlap=True))
    zero3.prefetch_elements = lambda model, setting: ahead
    run, batches = sharded("zero3", setting, width), iter(micro_batches(rank.rank, setting))
    return [one_step(run, batches) for _ in range(4)][-1]["sent"]


def test_gathering_ahead_stays_within_the_law() -> None:
    """What ZeRO-3 gathers on CUDA is at most what its law for CUDA says, and more than one gather."""
    setting = replace(BASE, world_size=2, bucket_mb=25.0, overlap=False, accumulation_sync="each")
    shape = shape_of(*micro(WIDTHS[1]))
    law = strategies.load("zero3").law(shape, replace(setting, device="cuda", overlap=True))
    (bound,) = [collective.payload_bytes_per_step for collective in law.collectives if collective.upper_bound]
    for sent in run_ranks(gathered_ahead, 2, setting, WIDTHS[1]):
        gathered = sent["forward"].get("all_gather", 0) + sent["backward"].get("all_gather", 0)
        assert bound / 2 < gathered <= bound


def accumulating(rank: Rank, name: str, setting: Setting) -> int:
    """Bytes of whole gradients on this rank after the first of two micro-batches."""
    run, batches = sharded(name, setting, WIDTHS[0]), iter(micro_batches(rank.rank, setting))
    for _ in range(2):
        one_step(run, batches)
    run.backward(run.forward(next(batches), False), False)
    held = [parameter.grad for parameter in run.module.parameters() if parameter.grad is not None]
    for module in run.module.modules():
        if isinstance(module, FSDPModule) and (group := module._get_fsdp_state()._fsdp_param_group):
            units = [unit.unsharded_param.grad for unit in group.fsdp_params if hasattr(unit, "_unsharded_param")]
            held += [grad for grad in units if grad is not None]
    return storage_bytes(held, set())


@pytest.mark.parametrize(
    "name", [name for name in strategies.names() if "last" in strategies.load(name).accumulation_syncs]
)
def test_gradients_between_micro_batches_equal_the_law(name: str) -> None:
    """A strategy that reduces once per step holds whole gradients until then."""
    strategy = strategies.load(name)
    world_size = 1 if strategy.unsupported(replace(BASE, world_size=2)) else 2
    (setting,) = supported(strategy, [replace(BASE, world_size=world_size, accumulation=2)])
    law = strategy.law(shape_of(*micro(WIDTHS[0])), setting)
    assert set(run_ranks(accumulating, world_size, name, setting)) == {law.accumulating_gradient_bytes}


@pytest.mark.parametrize("name", strategies.names())
def test_a_law_travels_as_json(name: str) -> None:
    """run.json carries the law evaluated."""
    strategy = strategies.load(name)
    law = strategy.law(shape_of(*micro(13)), replace(BASE, world_size=1))
    assert json.loads(json.dumps(asdict(law)))["source"]
