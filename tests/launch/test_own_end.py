"""How a process under its own loop ends: without `close`, by an error, by Ctrl-C, and what its user reads then."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scalelab.launch.commands import report
from scalelab.profiles.runfolder import RunFolder

DOCS = Path(__file__).parents[2] / "docs" / "own-loop.md"
SNIPPET = re.search(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
LOADER = "loader = [torch.ones(4, 3)] * 12\n"
BEFORE = """
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
distributed.init_process_group("gloo")
class Model(nn.Linear):
    def forward(self, batch): return super().forward(batch).square().mean()
model = Model(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
ALONE = """
import scalelab, torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
probe = scalelab.Probe.attach(model, optimizer, warmup=1)
for batch in probe.batches([torch.ones(4, 3)] * 8):
    with probe.step():
        model(batch).sum().backward()
        optimizer.step()
"""
ACCUMULATES = """
import scalelab, torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
probe = scalelab.Probe.attach(model, optimizer, warmup=1)
batches = probe.batches([torch.ones(4, 3)] * 10)
def train():
    while True:
        with probe.step():
            for _ in range(4):
                model(next(batches)).sum().backward()
            optimizer.step()
"""
CATCHES = """
try:
    train()
except StopIteration:
    pass
"""
RAISES = "raise ValueError('the user\\'s')\n"


def run(tmp_path: Path, code: str, ranks: int = 1) -> tuple[subprocess.CompletedProcess[str], RunFolder]:
    """`code` as a script of its own, under torchrun on `ranks`."""
    (tmp_path / "job.py").write_text(code)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, "job.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    return done, RunFolder((tmp_path / "runs" / "latest").resolve())


def test_the_three_lines_of_the_docs_are_enough(tmp_path: Path) -> None:
    """As they are printed there, on two ranks: nothing on stderr, and a summary and a report in the folder."""
    assert SNIPPET is not None
    done, folder = run(tmp_path, BEFORE + LOADER + SNIPPET[1] + "distributed.destroy_process_group()\n", ranks=2)
    assert (done.returncode, done.stderr) == (0, "")
    summary = folder.read("summary.json")
    assert (summary["outcome"]["state"], summary["steps"]["measured"], summary["world_size"]) == ("finished", 7, 2)
    assert "Finished" in (folder.path / "report.md").read_text()


@pytest.mark.parametrize(
    ("end", "code", "state"),
    [
        ("", 0, "finished"),
        (RAISES, 1, "failed"),
        (f"with probe.step():\n    {RAISES}", 1, "failed"),
        ("import signal; signal.raise_signal(signal.SIGINT)\n", -2, "interrupted"),
        ("import sys; sys.exit(3)\n", 3, "finished"),
    ],
)
def test_a_job_ends_with_what_it_says_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str, code: int, state: str
) -> None:
    """No traceback but its own, its own exit code, and a folder that is whole and says how it ended, as does
    `scalelab report`."""
    done, folder = run(tmp_path, ALONE + end)
    assert done.returncode == code
    assert done.stderr.count("Traceback") == (state != "finished")
    assert not re.search(r"scalelab|Exception ignored", done.stderr.replace(str(tmp_path), "")), done.stderr
    summary = folder.read("summary.json")
    assert (summary["outcome"]["state"], summary["steps"]["measured"]) == (state, 7)
    assert (folder.path / "report.html").is_file()
    if state == "failed":
        assert folder.read("status.json")["cause"] == "ValueError: the user's"
    assert report.main([str(folder.path)]) == 0
    shown = capsys.readouterr().out.split("Linear")[0]
    assert shown.startswith("\n" if state == "finished" else f"\n{state.upper()} (exit code")
    assert ("the user's" in shown, "Ctrl-C" in shown) == (state == "failed", state == "interrupted")


@pytest.mark.parametrize(
    ("end", "state", "code"), [(CATCHES, "finished", 0), ("train()\n", "failed", 1)], ids=["caught", "not"]
)
def test_a_loader_that_ends_within_a_step(tmp_path: Path, end: str, state: str, code: int) -> None:
    """The loop's own `except` sees it; without one the job has failed, and its folder says so."""
    done, folder = run(tmp_path, ACCUMULATES + end)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("the loader ended within a step") == 1
    assert "AssertionError" not in done.stderr
    summary = folder.read("summary.json")
    assert (summary["outcome"]["state"], summary["steps"]["measured"]) == (state, 1)
    assert (folder.read("status.json")["cause"] or "").startswith("StopIteration") == (state == "failed")


def test_all_ranks_raise(tmp_path: Path) -> None:
    """Under DDP, each after its own steps: the user's traceback alone, and the run has failed."""
    assert SNIPPET is not None
    done, folder = run(tmp_path, BEFORE + LOADER + SNIPPET[1] + RAISES, ranks=2)
    assert done.returncode == 1
    assert "the user's" in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "scalelab/" not in done.stderr.replace(sys.prefix, "")
    assert folder.read("status.json")["state"] == "failed"
