"""`scalelab run` from the command line to its run folder: real ranks, real failures."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from scalelab.launch import strategies
from scalelab.profiles.analysis.parity import deviations

from tests.support.command import quick_scalelab, scalelab

ROOT = Path(__file__).parents[2]
QUICK = ["--steps=4", "--warmup=2", "--json"]
MODEL = """
    import torch
    from torch import nn
    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(3, width)
            self.calls = 0
        def forward(self, batch):
            self.calls += 1
            {body}
            return self.layer(batch["x"]).square().mean()
    def build_model(width=4): return Net(width)
    def example_batch(size): return {{"x": torch.randn(size, 3), "names": ["a"] * size}}
"""


def model_file(tmp_path: Path, body: str = "pass", extra: str = "") -> Path:
    path = tmp_path / "my model [x] 'q'.py"
    path.write_text(textwrap.dedent(MODEL).format(body=body) + textwrap.dedent(extra))
    return path


def trained(tmp_path: Path, strategy: str) -> dict[str, Any]:
    """The summary of our model under `strategy`."""
    code, summary, errors = quick_scalelab(
        "run", "--model=nano", f"--strategy={strategy}", "--gpus=2", f"--out={tmp_path / 'out [x]'}", *QUICK,
        "--eval-every=3", "--save-every=6", "--record-grad-norm", "--micro-batch=2", "--target=ap_mean>=0.0",
    )  # fmt: skip
    assert code == 0, errors
    return summary


@pytest.fixture(scope="module")
def by_ddp(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("ddp"), "ddp")


# Under ZeRO-2 the model trains in test_parity.py as well.
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "zero2" else ())
        for name in sorted(set(strategies.names()) - {"single"})
    ],
)
def test_our_model_trains_evaluates_and_saves(tmp_path: Path, by_ddp: dict[str, Any], strategy: str) -> None:
    """Every strategy on two ranks sees the same data and reaches the same losses and held-out metric as DDP."""
    summary = by_ddp if strategy == "ddp" else trained(tmp_path, strategy)
    folder = Path(summary["run_folder"])
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert json.loads((folder / "summary.json").read_text())["run_id"] == folder.name
    assert {path.name for path in (folder / "ranks").iterdir()} == {"r000.jsonl", "r001.jsonl"}
    assert {event["kind"] for event in summary["events"]} - {"flush"} == {"checkpoint", "evaluation"}
    manifest = json.loads(next((folder / "checkpoints").glob("*/MANIFEST.json")).read_text())
    assert manifest["world_size"] == 2
    assert manifest["files"]
    assert summary["quality"]["metric"] == "ap_mean"
    law = json.loads((folder / "run.json").read_text())["law"]
    worst = max(law["ranks"], key=lambda rank: sum(rank.values()))
    kinds = ("parameters", "gradients", "optimizer")
    assert {kind: summary["memory"]["state"][kind] for kind in kinds} == worst
    expected = {"loss": by_ddp["loss"], "grad_norm": by_ddp["grad_norm"]}
    assert not deviations(summary, expected, tolerance=1e-5)
    assert summary["quality"]["best"] == pytest.approx(by_ddp["quality"]["best"], abs=1e-3)


def test_deterministic_runs_repeat_bit_for_bit(tmp_path: Path) -> None:
    """The same command twice gives the same losses, and torchrun the same as fork."""
    command = ["run", "--model=nano", "--strategy=ddp", "--gpus=2", "--deterministic", f"--out={tmp_path}", *QUICK]
    losses = [scalelab(*command, *more)[1]["loss"] for more in ([], ["--launcher=torchrun"])]
    assert losses[0] == losses[1]


def test_a_run_says_how_it_was_trained(tmp_path: Path) -> None:
    """Engine, precision with its five dtypes, checkpointing, compilation and the law, in run.json and the summary."""
    code, summary, errors = quick_scalelab(
        "run", "--model=nano", "--strategy=fsdp2", "--gpus=2", f"--out={tmp_path}", *QUICK, "--precision=bf16-params",
        "--checkpointing=selective", "--grad-accumulation=2", "--engine=accelerate", "--clip-norm=1", "--optimizer=sgd",
    )  # fmt: skip
    assert code == 0, errors
    assert (summary["engine"], summary["checkpointing"], summary["compile"]) == ("accelerate", "selective", False)
    assert summary["precision"] == {
        "name": "bf16-params", "param": "bf16", "compute": "bf16", "grad": "bf16", "reduce": "bf16", "master": "fp32",
    }  # fmt: skip
    assert 0 < summary["detail"]["recompute_seconds"] < summary["phases"]["backward"]["mean"]
    run_json = json.loads((Path(summary["run_folder"]) / "run.json").read_text())
    assert run_json["config"]["accumulation_sync"] == "last"
    assert run_json["law"]["reductions_per_step"] == 1
    assert run_json["law"]["accumulating_gradient_bytes"] > 0


def test_ranks_that_build_different_weights_are_refused(tmp_path: Path) -> None:
    """DDP would train rank 0's, FSDP2 a patchwork: neither runs."""
    extra = """
        import os
        build = build_model
        def build_model():
            model = build()
            nn.init.constant_(model.layer.weight, float(os.environ.get("RANK", 0)))
            return model
    """
    path = model_file(tmp_path, extra=extra)
    code, _, errors = quick_scalelab(
        "run", f"--model={path}", "--strategy=fsdp2", "--gpus=2", f"--out={tmp_path}", *QUICK
    )
    assert (code, "different weights on different ranks" in errors) == (2, True), errors


def test_skipped_updates_are_counted(tmp_path: Path) -> None:
    """fp16's first scale is too large for this model: its first updates are skipped, and the summary says how many."""
    path = model_file(tmp_path, "return (self.layer(batch['x']) * 30).square().mean()")
    code, summary, errors = quick_scalelab(
        "run", f"--model={path}", "--gpus=2", f"--out={tmp_path}", *QUICK, "--precision=fp16", "--record-grad-norm"
    )
    assert code == 0, errors
    assert summary["steps"]["skipped"] == sum(norm is None for norm in summary["grad_norm"]) > 0
    assert None not in summary["loss"]


def test_the_example_model_of_somebody_else_trains(tmp_path: Path) -> None:
    """The worked example learns, with its own loader, its options and a thread that prefetches."""
    code, summary, errors = quick_scalelab(
        "run", "--model", ROOT / "examples" / "byte_gpt.py", "--strategy=ddp", "--gpus=2", f"--out={tmp_path}",
        "--model-option=layers=1", "--model-option=width=32", "--prefetch=2", "--steps=20", "--json",
    )  # fmt: skip
    assert code == 0, errors
    assert summary["loss"][-1] < summary["loss"][0]
    assert summary["model"]["parameters"] < 60_000


@pytest.mark.fault(12)
@pytest.mark.parametrize(
    ("body", "extra", "options", "code", "parts"),
    [
        ("if self.calls == 4: raise KeyError('mine')", "", [], 5, ["self.calls == 4", "KeyError", "forward of step 3"]),
        ("return self.layer(batch['x'])", "", [], 2, ["scalar", "(4, 4)"]),
        ("return None", "", [], 2, ["NoneType", "scalar"]),
        ("return self.layer(batch['x']).mean() * float('nan')", "", [], 8, ["not finite", "--lr"]),
        ("pass", "", ["--model-option=widht=3"], 2, ["did you mean width?"]),
        ("pass", "del build_model", [], 2, ["build_model"]),
        ("pass", "", ["--checkpointing=full"], 2, ["shows none", "define blocks"]),
        ("pass", "def blocks(model): return [model]", [], 2, ["blocks returned the model itself"]),
        ("pass", "def blocks(model): return [model.layer, model.layer]", [], 2, ["layer more than once"]),
        (
            "pass",
            "build = build_model\ndef build_model(): return build().half()",
            [],
            2,
            ["torch.float16", "bf16-params"],
        ),
        (
            "pass",
            "build = build_model\ndef build_model():\n    m = build(); m.s = nn.Parameter(torch.tensor(1.0)); return m",
            ["--strategy=fsdp2"],
            2,
            ["without dimensions", "shape (1,)"],
        ),
        ("pass", "", ["--data=/tmp"], 2, ["build_loader"]),
        ("pass", "def build_loader(rank, world_size, micro_batch, seed): return []", [], 2, ["no batches"]),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "", [], 5, ["SIGKILL"]),
    ],
)
def test_a_model_that_misbehaves_is_named(
    tmp_path: Path, body: str, extra: str, options: list[str], code: int, parts: list[str]
) -> None:
    """Exit code, cause and place of each fault; the status file has them too."""
    path = model_file(tmp_path, body, extra)
    found, _, errors = quick_scalelab("run", f"--model={path}", "--gpus=1", f"--out={tmp_path}", *options, *QUICK)
    assert found == code, errors
    for part in parts:
        assert part in errors
    assert "Traceback" not in errors or "internal" not in errors
    if not (tmp_path / "latest").exists():  # refused, nothing was started
        assert code == 2
        return
    status = json.loads((tmp_path / "latest" / "status.json").read_text())
    assert status["exit_code"] == code
    assert status["culprit"] is None or status["culprit"]["rank"] == 0


@pytest.mark.fault(30)
def test_bad_places_and_data_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """A folder that cannot be written is preflight, data that is missing or too little is data."""
    (tmp_path / "file").write_text("")
    code, _, errors = quick_scalelab("run", "--model=nano", f"--out={tmp_path / 'file'}", *QUICK)
    assert (code, "a file is in the place of a folder" in errors) == (3, True)
    code, _, errors = quick_scalelab("run", "--model=nano", f"--data={tmp_path / 'none'}", f"--out={tmp_path}", *QUICK)
    assert (code, "no such folder" in errors) == (4, True)
    code, _, errors = quick_scalelab("run", "--model=nano", "--global-batch=100000", f"--out={tmp_path}", *QUICK)
    assert (code, "fewer than one global batch" in errors) == (4, True)
    code, _, errors = quick_scalelab("run", f"--model={tmp_path / 'absent.py'}", f"--out={tmp_path}", *QUICK)
    assert (code, "no such file" in errors) == (2, True)


def test_data_make_and_check(tmp_path: Path) -> None:
    """A set that was made passes its check; a flipped byte is found with shard, sample and offset."""
    made = ["data", "make", "--model=nano", f"--out={tmp_path / 'a b'}", "--train-samples=4", "--val-samples=2"]
    code, facts, errors = scalelab(*made, "--json")
    assert code == 0, errors
    assert facts["samples"] == 6
    assert scalelab("data", "check", tmp_path / "a b", "--json")[0] == 0
    shard = next((tmp_path / "a b").glob("train-*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, found, _ = quick_scalelab("data", "check", tmp_path / "a b", "--json")
    assert code == 4
    assert found["problems"][0]["shard"] == shard.name
