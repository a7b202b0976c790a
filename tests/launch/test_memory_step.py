"""The steps in which memory is followed: true to counts by hand, and without a trace in what is trained."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from scalelab.launch import strategies
from scalelab.launch.build import prepare, shape_of
from scalelab.launch.memory_step import STEPS
from scalelab.launch.ranks import Rank
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._contract import Sharded
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.capture.memory import digest
from scalelab.profiles.capture.memory_step import MemoryProbe
from scalelab.profiles.capture.storages import StorageLog
from scalelab.profiles.records import StepRecord
from scalelab.profiles.used import MemoryStepRecord
from torch import nn
from torch.nn import functional as F

from tests.support.memory import follow
from tests.support.ranks import run_ranks
from tests.support.supervised import run_supervised
from tests.support.training import MICRO_BATCH, micro, micro_batches, records_of, sharded, supported

FP32 = 4
BATCH, TOKENS, WIDTH, HEADS, BLOCKS = 3, 5, 16, 2, 3
SETTING = Setting(world_size=1, device="cpu", micro_batch=BATCH)


def on_rank(rank: Rank, name: str, setting: Setting) -> tuple[list[str], MemoryStepRecord, list[str]]:
    """Digests of the parameters before, after, and a step later; the record of memory; the roles of its steps."""
    run, batches = sharded(name, setting, 13), micro_batches(rank.rank, setting)
    first = 4 * setting.accumulation
    records_of(run, batches[:first])
    digests = [digest(run.parameters())]
    whole, memory, steps = follow(run, batches, rank=rank, strategy=name)
    assert whole
    digests.append(digest(run.parameters()))
    records_of(run, batches[first : first + setting.accumulation])
    digests.append(digest(run.parameters()))
    run.close()
    return digests, memory, [step.role for step in steps]


@pytest.mark.parametrize("options", [{}, {"accumulation": 2, "checkpointing": "selective", "precision": "bf16"}])
@pytest.mark.parametrize("name", [name for name in strategies.names() if name != "single"])
def test_no_bit_of_a_parameter_changes_and_the_kinds_close(name: str, options: dict[str, Any]) -> None:
    """Under every strategy: training goes on as before, kinds sum to the peak, and state is what the law says."""
    (setting,) = supported(strategies.load(name), [replace(SETTING, world_size=2, lr=1e-2, **options)])
    law = strategies.load(name).law(shape_of(*micro(13)), setting)
    for rank, (digests, memory, roles) in enumerate(run_ranks(on_rank, 2, name, setting)):
        before, after, later = digests
        assert before == after != later
        assert roles == ["memory"] * STEPS
        assert memory.failed is None
        assert memory.peak is not None
        assert memory.timeline is not None
        assert sum(memory.peak.by_kind.values()) == memory.peak.bytes
        over_time = memory.timeline.by_kind
        assert max(map(sum, zip(*over_time.values(), strict=True))) == memory.peak.bytes
        held = law.ranks[rank]
        assert memory.peak.by_kind["optimizer"] == held.optimizer
        assert memory.peak.by_kind["parameters"] == held.parameters
        phases = zip(memory.timeline.phase, over_time["parameters"], over_time["optimizer"], strict=True)
        computing = {(stored, kept) for phase, stored, kept in phases if phase in ("forward", "backward")}
        assert computing == {(held.parameters, held.optimizer)}
        assert max(over_time["gradients"]) >= held.gradients
        assert max(over_time["activations"]) > 0
        assert (max(over_time["communication"]) > 0) == (name != "ddp")
        assert len(set(memory.left_bytes)) == 1


class Mlp(nn.Module):
    """Linear, ReLU, Linear: autograd keeps what goes into each Linear, and what the ReLU returns, which is one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


class Attention(nn.Module):
    """Queries, keys and values are three views of one storage; attention keeps them, its result and its logsumexp."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.view(BATCH, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(BATCH, TOKENS, WIDTH))


class Chain(nn.Module):
    """Blocks, and a loss that keeps the last one's result."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x.square().mean()


def trained(model: nn.Module, checkpointing: str = "none", accumulation: int = 1) -> Sharded:
    """`model` under the strategy `single`, one step old, so that its optimizer has its state."""
    setting = replace(SETTING, checkpointing=checkpointing, accumulation=accumulation)
    blocks = list(model.get_submodule("blocks").children())
    prepare(model, blocks, "model", setting)
    run = strategies.load("single").shard(model, setting, blocks)
    run.backward(run.forward(batch(), True), True)
    run.step(True)
    return run


def batch() -> torch.Tensor:
    return torch.ones(BATCH, TOKENS, WIDTH)


RESULT = BATCH * TOKENS * WIDTH * FP32
HIDDEN = 4 * RESULT
SCORES = 3 * RESULT + RESULT + BATCH * HEADS * TOKENS * FP32  # qkv, the result of attention, logsumexp
# By hand. What goes into the first block is the batch. Recomputing stops at the last tensor that backward needs, and
# begins with the last block, whose result its loss has given up by then.
BY_HAND = {
    (Mlp, "none"): BLOCKS * (HIDDEN + RESULT),
    (Mlp, "full"): (BLOCKS - 1) * RESULT + HIDDEN,
    # Both products of each block are kept, and the last block's ReLU is computed again.
    (Mlp, "selective"): BLOCKS * (HIDDEN + RESULT) + HIDDEN,
    (Attention, "none"): BLOCKS * (SCORES + RESULT),
    (Attention, "full"): (BLOCKS - 1) * RESULT + SCORES,
    (Attention, "selective"): BLOCKS * (SCORES + RESULT),
}


@pytest.mark.parametrize(("block", "checkpointing"), BY_HAND)
def test_activations_equal_a_count_by_hand(block: type[nn.Module], checkpointing: str) -> None:
    """The most that is kept for backward in a step, to the byte; full checkpointing keeps blocks' inputs in forward."""
    run = trained(Chain(*(block() for _ in range(BLOCKS))), checkpointing)
    _, memory, _ = follow(run, [batch()])
    assert memory.timeline is not None
    kept = memory.timeline.by_kind["activations"]
    assert max(kept) == BY_HAND[block, checkpointing]
    forward = [count for count, phase in zip(kept, memory.timeline.phase, strict=True) if phase == "forward"]
    if checkpointing == "full":
        assert forward[-1] == BLOCKS * RESULT
    assert kept[-1] == 0
    assert set(memory.timeline.by_kind["batch"]) == {0, RESULT} or set(memory.timeline.by_kind["batch"]) == {RESULT}


class Spike(nn.Module):
    """Takes 100 MB for a moment."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.new_zeros(25_000_000).sum()


def test_a_planted_temporary_is_found_where_it_is() -> None:
    """The peak lies in the forward of the module that took it, and the bytes are temporary."""
    run = trained(Chain(Mlp(), nn.Sequential(nn.Identity(), Spike()), Mlp()))
    _, memory, _ = follow(run, [batch()])
    assert memory.peak is not None
    assert (memory.peak.phase, memory.peak.module) == ("forward", "blocks.1.1")
    assert 100_000_000 <= memory.peak.by_kind["temporary"] < 100_010_000


class Keeping(nn.Module):
    """Keeps what it is given in `kept`."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept.append(x * 2)
        return x


@pytest.mark.parametrize(("kept", "growing"), [([], True), (deque(maxlen=1), False), (deque(maxlen=2), False)])
def test_a_leak_is_told_from_what_is_replaced(kept: Any, growing: bool) -> None:
    """A tensor more each step, to the byte, with all of the graph that it holds; what a queue replaces is no growth."""
    run = trained(Chain(Mlp(), nn.Sequential(Keeping(kept)), Mlp()), accumulation=1)
    _, memory, _ = follow(run, [batch()])
    differences = [after - before for before, after in zip(memory.left_bytes, memory.left_bytes[1:], strict=False)]
    if growing:
        assert len(set(differences)) == 1
        assert differences[0] == RESULT
        assert memory.left_by == "blocks.1.0"
    else:
        assert differences[-1] == 0


def test_what_grows_is_named_and_not_what_is_replaced_before_it() -> None:
    """A module that keeps its last result leaves as much in each step as one that keeps them all."""
    keeping = [nn.Sequential(Keeping(kept)) for kept in (deque(maxlen=1), [])]
    _, memory, _ = follow(trained(Chain(*keeping, Mlp()), accumulation=1), [batch()])
    assert memory.left_by == "blocks.1.0"


def test_a_fault_of_the_log_reaches_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps come to their end, and the reason is noted."""

    def broken(*arguments: Any) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(StorageLog, "_look", broken)
    whole, memory, steps = follow(trained(Chain(Mlp())), [batch()])
    assert whole
    assert len(steps) == STEPS
    assert "planted" in str(memory.failed)
    assert memory.peak is None


def test_a_step_that_runs_out_of_memory_is_noted() -> None:
    """It ends the following of memory and nothing else; no hook and no mode stays behind."""
    run = trained(Chain(Mlp()))

    def exhausted(*arguments: Any) -> None:
        raise MemoryError("planted")

    hook = run.module.register_forward_hook(exhausted)
    whole, memory, _ = follow(run, [batch()])
    hook.remove()
    assert not whole
    assert "MemoryError: planted" in str(memory.failed)
    assert "resize_" not in vars(torch.UntypedStorage)
    records_of(run, [batch()])


def test_micro_batch_is_that_of_the_tests() -> None:
    """The micro model's batches have as many samples as the setting says."""
    assert BATCH == MICRO_BATCH


def out_of_memory_on_one(rank: int) -> None:
    """Rank 1 runs out of memory in the first step that is followed; its peer then waits for it in a collective."""
    if rank == 1:

        def exhausted(*arguments: Any) -> None:
            raise MemoryError("planted")

        mock.patch.object(MemoryProbe, "followed", exhausted).start()


@pytest.mark.fault(69)
def test_a_rank_that_fails_while_memory_is_followed_ends_nothing(tmp_path: Path) -> None:
    """What was measured before is kept, the run finishes, and both ranks say why they have no kinds."""
    found = run_supervised(tmp_path, plant=out_of_memory_on_one, steps=4)
    assert found.status["exit_code"] == 0, found.status
    summary = summarise(load_run(found.folder))
    assert summary["steps"]["measured"] == 4
    assert summary["memory"]["peak_bytes"] is None
    why = [
        record.failed
        for rank in (0, 1)
        for record in found.folder.records(rank)[0]
        if isinstance(record, MemoryStepRecord)
    ]
    assert "MemoryError: planted" in str(why[1])
    assert why[0]
    assert found.left == []


@pytest.mark.parametrize("switch", ["on", "off"])
def test_memory_is_followed_unless_told_otherwise(tmp_path: Path, switch: str) -> None:
    """In a run under DDP, with what grows in it; switched off, no step is added and the reason is given."""
    found = run_supervised(tmp_path, steps=4, memory_step=switch)
    assert found.status["exit_code"] == 0, found.status
    summary = summarise(load_run(found.folder))
    memory, reasons = summary["memory"], summary["reasons"]
    roles = [record.role for record in found.folder.records(0)[0] if isinstance(record, StepRecord)]
    assert roles == ["warmup"] + ["measured"] * 4 + ["memory"] * (STEPS if switch == "on" else 0)
    assert (summary["steps"]["measured"], len(summary["loss"])) == (4, 5)
    if switch == "on":
        assert memory["peak_bytes"] == sum(memory["by_kind"].values()) > 0
        assert memory["growth_ci95"] == [0, 0]
    else:
        assert memory["peak_bytes"] is None
        assert "--memory-step off" in reasons["memory.peak_at"]
