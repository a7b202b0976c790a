"""A job under its own loop, measured: the worked examples as a user starts them, and what a loop can do wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import scalelab
import torch
from scalelab.launch import reporting
from scalelab.launch.attach import Probe
from scalelab.launch.commands import report
from scalelab.launch.errors import ConfigError
from scalelab.launch.ranks import Rank
from scalelab.profiles.records import StepRecord
from scalelab.profiles.runfolder import RunFolder
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.profiles.test_summary import EXPLAINED_ABOVE, explained, silent
from tests.support import ranks

EXAMPLES = Path(__file__).parents[2] / "examples"
# What of a step each sends, by kind: DDP's all-reduce of 875,520 fp32 parameters, and what ZeRO-2 adds.
WHOLE = 875_520 * 4
SENT = {
    "own_loop_ddp": {"all_reduce": WHOLE},
    "own_loop_accelerate": {"all_reduce": WHOLE},
    "own_loop_deepspeed": {"all_reduce": WHOLE + 4, "all_gather": WHOLE},
}


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("own_loop_*.py")))
def test_an_example_leaves_the_run_folder_of_a_run(tmp_path: Path, name: str) -> None:
    """Under torchrun on two ranks: every phase, the collectives to the byte, and a ledger that closes; `scalelab
    report` rebuilds the same summary."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(EXAMPLES / f"{name}.py")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    folder = RunFolder((tmp_path / "runs" / "latest").resolve())
    summary = folder.read("summary.json")
    assert (summary["world_size"], summary["outcome"]["state"]) == (2, "finished")
    assert (summary["steps"]["warmup"], summary["steps"]["measured"]) == (5, 25)
    assert summary["global_batch"] == 8
    assert summary["comm"]["payload_bytes_per_step"] == SENT[name]
    phases = {phase: row["mean"] for phase, row in summary["phases"].items() if row is not None}
    assert sum(phases.values()) == pytest.approx(summary["step_seconds"]["mean"])
    assert all(phases[phase] > 0 for phase in ("data", "forward", "backward", "comm_exposed", "optimizer"))
    assert phases["unattributed"] < 0.2 * summary["step_seconds"]["mean"]
    before = (folder.path / "summary.json").read_bytes()
    assert report.main([str(folder.path), "--json"]) == 0
    assert (folder.path / "summary.json").read_bytes() == before


def loop(probe: Probe, model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor]) -> None:
    for batch in probe.batches(batches):
        with probe.step():
            loss = model(batch).square().mean()
            probe.loss(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[Probe, nn.Module, torch.optim.Optimizer]]:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    probe = scalelab.Probe.attach(model, optimizer, out=tmp_path, warmup=1)
    yield probe, model, optimizer
    probe.close()


def test_a_loop_without_ranks(alone: tuple[Probe, nn.Module, torch.optim.Optimizer]) -> None:
    """One process and no group: steps, losses, rate and samples; communication is 0."""
    probe, model, optimizer = alone
    loop(probe, model, optimizer, [torch.ones(4, 3)] * 5)
    probe.close()
    summary = probe.folder.read("summary.json")
    assert (summary["steps"]["warmup"], summary["steps"]["measured"], len(summary["loss"])) == (1, 4, 5)
    assert summary["phases"]["comm_exposed"]["mean"] == 0
    records = [record for record in probe.folder.records(0)[0] if isinstance(record, StepRecord)]
    assert {(record.samples, record.lr) for record in records} == {(4, 0.5)}
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert "Finished" in (probe.folder.path / "report.md").read_text()
    assert (probe.folder.path / "report.html").is_file()


def test_a_loss_outside_of_steps_ends_nothing(
    alone: tuple[Probe, nn.Module, torch.optim.Optimizer], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is in no step, which is said once."""
    probe, model, optimizer = alone
    for _ in range(2):
        probe.loss(torch.ones(()))
        loop(probe, model, optimizer, [torch.ones(4, 3)] * 3)
    probe.close()
    assert len(probe.folder.read("summary.json")["loss"]) == 6
    assert capsys.readouterr().err.count("Probe.loss: no step is open") == 1


@pytest.mark.parametrize("place", ["load_run", "write_run_report"])
def test_a_report_that_cannot_be_made_does_not_end_the_job(
    alone: tuple[Probe, nn.Module, torch.optim.Optimizer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    """Whatever fails in it, `close` returns and says so, with the command that makes the report later."""
    probe, model, optimizer = alone
    loop(probe, model, optimizer, [torch.ones(4, 3)] * 3)

    def fails(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(reporting, place, fails)
    probe.close()
    told = capsys.readouterr().err
    assert "planted" in told
    assert f"scalelab report {probe.folder.path}" in told


def test_what_surrounds_the_loop_is_left_as_it_was(tmp_path: Path) -> None:
    """After `close` no hook and no replaced function is left."""
    backward = torch.autograd.backward
    probe = scalelab.Probe.attach(nn.Linear(3, 1), out=tmp_path)
    assert torch.autograd.backward is not backward
    probe.close()
    probe.close()
    assert torch.autograd.backward is backward


def test_an_error_in_the_loop_is_in_the_status(alone: tuple[Probe, nn.Module, torch.optim.Optimizer]) -> None:
    """It passes on to the caller; the steps before it are on disk."""
    probe, model, optimizer = alone
    loop(probe, model, optimizer, [torch.ones(4, 3)] * 3)
    with pytest.raises(RuntimeError, match="the user's"), probe.step():
        raise RuntimeError("the user's")
    probe.close()
    status = probe.folder.read("status.json")
    assert (status["state"], status["exit_code"], status["culprit"]["rank"]) == ("failed", 5, 0)
    assert "the user's" in status["cause"]
    assert len([record for record in probe.folder.records(0)[0] if isinstance(record, StepRecord)]) == 3


def test_a_loop_that_goes_on_after_an_error_is_measured_on(
    alone: tuple[Probe, nn.Module, torch.optim.Optimizer],
) -> None:
    """An error between forward and backward leaves no phase open for the steps after it."""
    probe, model, optimizer = alone
    with pytest.raises(AttributeError), probe.step():
        model(torch.ones(1, 3)).no_such_loss()
    loop(probe, model, optimizer, [torch.ones(4, 3)] * 2)
    probe.close()
    steps = [record for record in probe.folder.records(0)[0] if isinstance(record, StepRecord)]
    assert [set(step.phases) for step in steps] == [{"data", "forward", "backward", "optimizer"}] * 2


def test_samples_are_those_of_the_steps(alone: tuple[Probe, nn.Module, torch.optim.Optimizer]) -> None:
    """Batches of different length: samples a second count each; where nobody counted, they are null."""
    probe, model, optimizer = alone
    loop(probe, model, optimizer, [torch.ones(size, 3) for size in (8, 2, 4, 6)])
    probe.close()
    summary = probe.folder.read("summary.json")
    assert summary["throughput"]["samples_per_second"] == pytest.approx(4 / summary["step_seconds"]["mean"])


def test_a_loop_that_draws_its_own_batches_has_no_samples(
    alone: tuple[Probe, nn.Module, torch.optim.Optimizer], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its steps are measured all the same."""
    probe, model, optimizer = alone
    for _ in range(4):
        with probe.step():
            model(torch.ones(4, 3)).sum().backward()
            optimizer.step()
    probe.close()
    summary = probe.folder.read("summary.json")
    assert summary["steps"]["measured"] == 3
    assert summary["throughput"]["samples_per_second"] is None
    assert summary["cost"]["device_hours_per_million_samples"] is None
    assert "probe.batches" in summary["reasons"]["throughput.samples_per_second"]
    assert report.main([str(probe.folder.path)]) == 0
    assert "samples/s are not known: samples were not counted: probe.batches" in capsys.readouterr().out
    nulls = silent({name: value for name, value in summary.items() if name != "reasons"}) - EXPLAINED_ABOVE
    assert {"precision.compute", "checkpointing"} <= nulls
    assert [path for path in nulls if not explained(path, summary["reasons"])] == []
    told = {why for why in summary["reasons"].values() if re.search(r"(^|[ (])--[a-z]", why)}
    # Those are options of `scalelab report` and `scalelab doctor`.
    assert {why for why in told if "--usd-per" not in why and "doctor" not in why} == set()


def left_alone(rank: Rank, out: Path) -> int:
    """Rank 1 ends as a process does that has raised, while rank 0 waits for it in a collective."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = scalelab.Probe.attach(model, optimizer, out=out, warmup=1)
    wrapped = DistributedDataParallel(model)
    loop(probe, wrapped, optimizer, [torch.ones(4, 3)] * 4)
    if rank.rank == 1:
        probe._end_alone()
    torch.distributed.barrier()
    if rank.rank == 0:
        probe._end_alone()
    return len([record for record in probe.folder.records(rank.rank)[0] if isinstance(record, StepRecord)])


def test_a_process_that_ends_by_itself_waits_for_nobody(tmp_path: Path) -> None:
    """Its records are whole; a barrier at its end would hang a job of which one rank failed."""
    assert ranks.run_ranks(left_alone, 2, tmp_path) == [4, 4]


def test_evaluation_between_steps_is_no_phase_of_one(alone: tuple[Probe, nn.Module, torch.optim.Optimizer]) -> None:
    """A forward outside of a step, and one without gradients within, leave the step's parts alone."""
    probe, model, optimizer = alone
    loop(probe, model, optimizer, [torch.ones(4, 3)] * 2)
    with torch.no_grad():
        model(torch.ones(1, 3))
    loop(probe, model, optimizer, [torch.ones(4, 3)] * 2)
    with probe.step(), torch.no_grad():
        model(torch.ones(1, 3))
    probe.close()
    steps = [record for record in probe.folder.records(0)[0] if isinstance(record, StepRecord)]
    assert [set(step.phases) for step in steps] == [{"data", "forward", "backward", "optimizer"}] * 4 + [{"forward"}]


def test_bad_uses_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="dict is no torch optimizer"):
        scalelab.Probe.attach(nn.Linear(3, 1), {}, out=tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"call torch\.distributed\.init_process_group first"):
        scalelab.Probe.attach(nn.Linear(3, 1), out=tmp_path)


def attached_late(rank: Rank, out: Path) -> dict[str, Any] | None:
    """A probe that comes after DDP does not see its collectives, and says so."""
    model = DistributedDataParallel(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="its collectives are not seen; attach before"):
        probe = scalelab.Probe.attach(model, optimizer, out=out, warmup=1)
    loop(probe, model, optimizer, [torch.ones(4, 3)] * 4)
    probe.close()
    return probe.folder.read("summary.json") if rank.rank == 0 else None


def test_a_wrapper_that_came_first_makes_communication_unknown(tmp_path: Path) -> None:
    """Null with the reason, and not 0."""
    summary = ranks.run_ranks(attached_late, 2, tmp_path)[0]
    assert summary["comm"]["payload_bytes_per_step"] is None
    assert summary["phases"]["comm_exposed"] is None
    assert "attach before DDP wraps the model" in summary["reasons"]["phases.comm_exposed"]


def test_report_names_what_is_no_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, words in ((tmp_path / "none", "no such folder"), (tmp_path, "no run.json")):
        with pytest.raises(ConfigError, match=words):
            report.main([str(path)])


def test_report_prints_one_summary_a_line(
    alone: tuple[Probe, nn.Module, torch.optim.Optimizer], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is given twice is reported once."""
    probe, model, optimizer = alone
    loop(probe, model, optimizer, [torch.ones(4, 3)] * 4)
    probe.close()
    other = shutil.copytree(probe.folder.path, probe.folder.path.with_name("other"))
    assert report.main([str(probe.folder.path), str(other), str(probe.folder.path), "--json"]) == 0
    lines = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["run_folder"] for line in lines] == [str(probe.folder.path), str(other)]
    assert report.main([str(probe.folder.path)]) == 0
    assert "its own loop" in capsys.readouterr().out
