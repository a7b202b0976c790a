"""The profiler window of a run: traces that say what was planted, and a run that outlives a profiler which fails."""

from __future__ import annotations

import gzip
import os
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from scalelab.profiles.analysis.summary import write_summary
from scalelab.profiles.capture import profiler as profiler_module
from scalelab.profiles.capture.profiler import Profiler
from scalelab.profiles.records import StepRecord

from tests.support.supervised import run_supervised

PLANTED = """
    import time, torch
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)
        def forward(self, batch):
            time.sleep({seconds})
            loss = self.layer(batch["x"]).square().mean()
            self.last = loss.item()
            return loss
    def build_model(): return Net()
    def example_batch(size): return {{"x": torch.randn(size, 3)}}
"""


def test_a_window_leaves_a_trace_per_rank_that_names_what_was_planted(tmp_path: Path) -> None:
    """Steps of the window and after it are not measured; a planted `.item()` is found at its line."""
    outcome = run_supervised(tmp_path, model=PLANTED, steps=4, profile_steps=2)
    assert outcome.status["exit_code"] == 0
    summary = write_summary(outcome.folder)
    assert (summary["steps"]["measured"], summary["steps"]["profiled"]) == (4, 2)
    assert len(summary["loss"]) == 5
    roles = [record.role for record in outcome.folder.records(0)[0] if isinstance(record, StepRecord)]
    assert roles[:11] == ["warmup", *["measured"] * 4, "settle", *["profiled"] * 2, *["settle"] * 3]
    assert set(roles[11:]) == {"memory"}
    assert summary["trace"]["steps"] == 2
    assert set(summary["trace"]["device_mean"]) >= {"compute_seconds", "exposed_communication_seconds", "idle_seconds"}
    for row in summary["trace"]["per_rank"]:
        (item,) = [sync for sync in row["host_syncs"] if "micro.py" in (sync["source"] or "")]
        assert (item["call"], item["count"]) == ("aten::item", 2)
        assert item["source"].endswith("micro.py:8 (forward)")  # where the function begins: kineto tells no more
    merged = orjson.loads(gzip.decompress((outcome.folder.path / summary["trace"]["merged"]["file"]).read_bytes()))
    rows = [row for row in merged["traceEvents"] if row["ph"] == "X"]
    assert {row["pid"] for row in rows} == {0, 1}
    assert {"data", "forward", "backward", "optimizer", "gloo:all_reduce"} <= {row["name"] for row in rows}
    (line,) = [sync for sync in summary["host_syncs"] if "micro.py" in (sync["source"] or "")]
    assert (line["operator"], line["calls_per_step"]) == ("aten::_local_scalar_dense", 1)
    assert line["source"].endswith("micro.py:11 (forward)")
    (profiler,) = [row for row in summary["events"] if row["kind"] == "profiler"]
    assert profiler["count"] == 2
    assert profiler["failed"] == 0


def no_profiler(rank: int) -> None:
    def refused(**options: Any) -> Any:
        raise RuntimeError("CUPTI_ERROR_NOT_COMPATIBLE")

    if rank == 1:
        profiler_module.Profiler.__init__.__defaults__ = (refused,)


@pytest.mark.fault(64)
def test_a_profiler_that_will_not_start_costs_its_trace_alone(tmp_path: Path) -> None:
    """On one rank of two: the run ends well, and says why there is one trace and not two."""
    outcome = run_supervised(tmp_path, steps=3, profile_steps=2, plant=no_profiler)
    assert outcome.status["exit_code"] == 0
    summary = write_summary(outcome.folder)
    assert [row["rank"] for row in summary["trace"]["per_rank"]] == [0, 1]
    assert summary["trace"]["per_rank"][0]["unusable"] is None
    assert "CUPTI_ERROR_NOT_COMPATIBLE" in summary["trace"]["per_rank"][1]["unusable"]
    assert summary["steps"]["measured"] == 3


def dies_while_it_exports(rank: int) -> None:
    def die(self: Profiler, made: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1:
        Profiler._written = die


@pytest.mark.fault(7)
def test_a_rank_killed_while_it_exports_costs_no_number(tmp_path: Path) -> None:
    outcome = run_supervised(tmp_path, steps=5, profile_steps=1, plant=dies_while_it_exports)
    assert outcome.status["exit_code"] == 5
    assert (outcome.status["culprit"]["rank"], outcome.status["culprit"]["phase"]) == (1, "profiler")
    summary = write_summary(outcome.folder)
    assert summary["steps"]["measured"] == 5
    assert summary["phases"]["backward"]["mean"] > 0
    rows = summary["trace"]["per_rank"] if summary["trace"] is not None else []
    assert 1 not in {row["rank"] for row in rows}
    assert not list((outcome.folder.path / "traces").glob("r001*"))
    assert outcome.left == []


@pytest.mark.fault(64)
@pytest.mark.parametrize("fails", ["start", "stop", "export_chrome_trace"])
def test_whatever_of_the_profiler_fails_is_kept_and_raises_nothing(tmp_path: Path, fails: str) -> None:
    class Fake:
        def __init__(self, **options: Any) -> None:
            return

        def __getattr__(self, name: str) -> Any:
            def act(*arguments: Any) -> None:
                if name == fails:
                    raise RuntimeError("no\nmore")

            return act

    profiler = Profiler(tmp_path / "traces" / "r000.pt.trace.json.gz", torch.device("cpu"), 1, Fake)
    profiler.start()
    profiler.stop()
    profiler.export()
    assert profiler.failed is not None
    assert profiler.failed.endswith("RuntimeError: no")
    assert not list(tmp_path.glob("traces/r*"))
