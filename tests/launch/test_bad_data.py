"""`--bad-data`: checked before the start, followed by the loader and in evaluation, told in records and summary."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import torch
from rich.console import Console
from scalelab.data.errors import DataError
from scalelab.data.generate import ensure_dataset
from scalelab.data.manifest import MANIFEST_NAME, load_manifest
from scalelab.data.spec import DatasetSpec
from scalelab.launch.config import RunConfig, build, skip_budget
from scalelab.launch.dataset import prepare
from scalelab.launch.devices import Devices
from scalelab.launch.errors import ConfigError, PreflightError, exit_code_of
from scalelab.launch.evaluation import Evaluation
from scalelab.launch.feed import bad_samples, open_feed
from scalelab.launch.plan import Plan, resolve
from scalelab.launch.ranks import Rank
from scalelab.models.contract import load_model
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import BadSampleRecord, Record
from scalelab.reports.table import run_table
from torch import distributed

from ..profiles.test_summary import folder_with, run_json, step

CPU = Devices("cpu", 0, "a processor", why_no_cuda="none here")
SPEC = DatasetSpec(train_samples=16, val_samples=7, cameras=6, width=64, height=40, samples_per_shard=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_dataset(SPEC, tmp_path_factory.mktemp("data"), workers=1)


@pytest.fixture
def damaged(dataset: Path, tmp_path: Path) -> Path:
    """A copy of `dataset` to damage."""
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def damage(folder: Path, split: str, numbers: set[int]) -> None:
    for shard, entry in (load_manifest(folder).split(split)[number] for number in numbers):
        content = bytearray((folder / shard.name).read_bytes())
        content[entry.offset + 600] ^= 1
        (folder / shard.name).write_bytes(content)


def plan(folder: Path, **options: Any) -> Plan:
    return resolve(build({"model": "nano", "data": str(folder), "gpus": 2, "micro_batch": 2, **options}), CPU)


def config_of(folder: Path, **options: Any) -> RunConfig:
    return plan(folder, **options).config


@pytest.mark.parametrize("text", ["skip", "skip:0", "skip:-1", "skip:1.5", "skip:²", "SKIP:2", "", "skip:1 "])
def test_other_policies_are_refused(text: str) -> None:
    """The message says what was given and what is allowed."""
    with pytest.raises(ConfigError) as error:
        build({"bad_data": text})
    assert str(error.value) == (
        f"--bad-data: given {text!r}, allowed fail, or skip:N with a whole number N of at least 1, such as skip:10"
    )


def test_policies_are_read() -> None:
    """Failing is the default; a budget is a number of samples; a user's own loader has its own ways."""
    assert [skip_budget(build({"bad_data": text}).bad_data) for text in ("fail", "skip:1", "skip:25")] == [0, 1, 25]
    assert build({}).bad_data == "fail"
    with pytest.raises(ConfigError, match="--bad-data belongs to our own loader"):
        build({"model": "mine.py", "bad_data": "skip:3"})


@pytest.mark.fault(32, 34)
@pytest.mark.parametrize("kind", ["missing", "empty", "truncated"])
def test_shards_that_are_not_there_are_found_before_the_start(damaged: Path, kind: str) -> None:
    """Which shard, expected and found; left to the indexed reader where it may leave damaged samples out."""
    path = damaged / "train-000001.tar"
    size = path.stat().st_size
    if kind == "missing":
        path.unlink()
    else:
        os.truncate(path, 0 if kind == "empty" else size - 1)
    found = "cannot be read" if kind == "missing" else f"found {path.stat().st_size}"
    for options in ({}, {"bad_data": "skip:9", "reader": "stream"}):
        with pytest.raises(DataError, match=rf"train-000001\.tar: expected {size} bytes, {found}"):
            prepare(plan(damaged, **options))
    assert prepare(plan(damaged, bad_data="skip:9")).folder == damaged


@pytest.mark.fault(35)
def test_fewer_shards_than_loader_processes_are_refused(dataset: Path) -> None:
    """Before anything starts, with the numbers and the way out; the indexed reader can share a shard."""
    with pytest.raises(
        PreflightError, match=r"4 training shards, but 2 ranks x 3 loader processes need one each, 6"
    ) as error:
        prepare(plan(dataset, reader="stream", workers=3))
    assert exit_code_of(error.value) == 3
    assert "--workers 2" in error.value.hint
    with pytest.raises(PreflightError, match="5 ranks x 1 loader") as error:
        prepare(plan(dataset, reader="stream", workers=0, prefetch=0, gpus=5))
    assert "--gpus 4" in error.value.hint
    assert prepare(plan(dataset, reader="stream", workers=2)).folder == dataset
    assert prepare(plan(dataset, workers=3)).folder == dataset


@pytest.mark.fault(32, 33)
@pytest.mark.parametrize("reader", ["indexed", "stream"])
def test_the_feed_leaves_out_and_records(damaged: Path, reader: str) -> None:
    """Each damaged sample becomes one record; a stream finds what its decoders find."""
    (shard, entry) = load_manifest(damaged).split("train")[5]
    content = bytearray((damaged / shard.name).read_bytes())
    place = content.index(b"\xff\xd8\xff", entry.offset)
    content[place : place + 3] = b"not"
    (damaged / shard.name).write_bytes(content)
    config = config_of(damaged, bad_data="skip:1", reader=reader)
    records: list[Record] = []
    rank = Rank(rank=0, local_rank=0, world_size=1, local_world_size=1)
    source = load_model("nano", {})
    with open_feed(config, source, rank, (64, 40), bad_samples(config, records.append)) as feed:
        for _ in range(20):
            next(feed)
    (record,) = records
    assert isinstance(record, BadSampleRecord)
    assert (record.split, record.shard, record.key, record.offset) == ("train", shard.name, entry.key, entry.offset)
    with open_feed(config.model_copy(update={"bad_data": "fail"}), source, rank, (64, 40)) as feed:
        with pytest.raises(DataError, match=entry.key):
            list(itertools.islice(feed, 20))


def evaluate(folder: Path, monkeypatch: pytest.MonkeyPatch, world: int, policy: str) -> tuple[list[Any], list[Record]]:
    """What each of `world` ranks finds on the held-out split, and the records of the last one. Ranks run one after
    the other, twice: the second time each is handed what all of them gathered the first time."""
    config = config_of(folder, bad_data=policy, workers=0, prefetch=0)
    source = load_model("nano", {})
    torch.manual_seed(0)
    model = source.build()
    parts: dict[int, Any] = {}
    results: list[Any] = []
    records: list[Record] = []
    for last in (False, True) if world > 1 else (True,):
        for index in range(world):

            def gather(into: list[Any], part: Any, index: int = index) -> None:
                parts[index] = part
                into[:] = [parts.get(other, (0.0, [], [])) for other in range(world)]

            records.clear()
            monkeypatch.setattr(distributed, "all_gather_object", gather)
            rank = Rank(rank=index, local_rank=index, world_size=world, local_world_size=world)
            bad = bad_samples(config, records.append)
            try:
                found = Evaluation(model, config, rank, torch.device("cpu"), bad)()  # type: ignore[arg-type]
            except (DataError, ZeroDivisionError) as error:
                found = error
            results += [found] if last else []
    return results, list(records)


@pytest.mark.fault(32, 33)
@pytest.mark.parametrize("bad", [{2}, {0, 1, 6}])
def test_evaluation_uses_what_is_whole_and_says_how_many(
    dataset: Path, damaged: Path, monkeypatch: pytest.MonkeyPatch, bad: set[int]
) -> None:
    """The result is that of a set without the damaged scenes, for any number of ranks, the same on all of them."""
    damage(damaged, "val", bad)
    for world in (1, 3):
        results, records = evaluate(damaged, monkeypatch, world, "skip:3")
        assert all(result == results[0] for result in results)
        assert results[0]["scenes"] == 7 - len(bad)
        assert len(records) == len(bad)
        assert all(isinstance(record, BadSampleRecord) and record.split == "val" for record in records)
    content = orjson.loads((damaged / MANIFEST_NAME).read_bytes())
    rows = [(shard, row) for shard in content["shards"] if shard["split"] == "val" for row in shard["samples"]]
    for shard, row in (rows[number] for number in bad):
        shard["samples"].remove(row)
    (damaged / MANIFEST_NAME).write_bytes(orjson.dumps(content))
    (whole,), _ = evaluate(damaged, monkeypatch, 1, "fail")
    assert results[0].keys() == whole.keys()
    assert results[0]["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-5)
    assert results[0]["ap_mean"] == pytest.approx(whole["ap_mean"], abs=1e-6)


@pytest.mark.fault(32, 33)
def test_evaluation_stops_on_all_ranks_alike(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the budget of all ranks together every rank raises; with `fail` the first that reads it does."""
    damage(damaged, "val", {1, 2})
    for result in evaluate(damaged, monkeypatch, 2, "skip:1")[0]:
        assert isinstance(result, DataError)
        assert "more than 1 damaged samples" in str(result)
    (result,), _ = evaluate(damaged, monkeypatch, 1, "fail")
    assert isinstance(result, DataError)
    assert "val00000001" in str(result)
    damage(damaged, "val", {0, 3, 4, 5, 6})  # none is left
    (result,), _ = evaluate(damaged, monkeypatch, 1, "skip:50")
    assert "none of the 7 samples can be read" in str(result)


def bad_record(number: int, message: str = "damaged") -> BadSampleRecord:
    key, offset = (None, None) if number < 0 else (f"k{number}", 512 * number)
    return BadSampleRecord(split="train", shard="s.tar", key=key, offset=offset, message=f"s.tar: {number}: {message}")


def test_the_summary_counts_each_once_over_ranks(tmp_path: Path) -> None:
    """Distinct over ranks, the first twenty listed, and a line in the table; without any, no line."""
    facts = {**run_json(2, bad_data="skip:30"), "data": {"manifest_sha256": "abc"}}
    ranks: list[list[Record]] = [
        [step(0, 1.0), *(bad_record(number) for number in range(first, 24))] for first in (-1, 10)
    ]
    summary = summarise(load_run(folder_with(tmp_path, facts, *ranks)))
    assert {name: summary["data"][name] for name in ("policy", "manifest_sha256", "skipped_samples")} == {
        "policy": "skip:30", "manifest_sha256": "abc", "skipped_samples": 25
    }  # fmt: skip
    assert [row.get("key") for row in summary["data"]["skipped"]] == [None, *(f"k{number}" for number in range(19))]
    assert "25 damaged samples left out (skip:30), the first: s.tar: -1" in printed(summary)
    facts["config"]["bad_data"] = "fail"
    summary = summarise(load_run(folder_with(tmp_path, facts, [step(0, 1.0)])))
    assert (summary["data"]["skipped_samples"], summary["data"]["skipped"]) == (0, [])
    assert "damaged samples" not in printed(summary)
    del facts["data"]
    summary = summarise(load_run(folder_with(tmp_path, facts, [step(0, 1.0)])))
    assert set(summary["data"].values()) == {None}
    assert {f"data.{name}" for name in summary["data"]} <= set(summary["reasons"])


def printed(summary: dict[str, Any]) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(run_table(summary))
    return stream.getvalue()


ALONE = """
    import signal, sys, time
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    import multiprocessing
    from scalelab.launch.config import RunConfig
    from scalelab.launch.feed import open_feed
    from scalelab.launch.ranks import Rank
    config = RunConfig(model="nano", data=sys.argv[1], micro_batch=2, workers=1, prefetch=2)
    rank = Rank(rank=0, local_rank=0, world_size=1, local_world_size=1)
    configs = [config.model_copy(update={"reader": reader}) for reader in ("indexed", "stream")]
    feeds = [open_feed(config, None, rank, (64, 40)) for config in configs]
    for feed in feeds:
        next(feed)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(100)
"""


@pytest.mark.fault(9, 10)
def test_loader_processes_leave_signals_to_their_rank_and_end_with_it(dataset: Path) -> None:
    """They ignore what asks a run to stop, which a scheduler sends to every process, and are gone as soon as a killed
    rank is, which torch would see to after more than five seconds."""
    command = [sys.executable, "-c", textwrap.dedent(ALONE), str(dataset)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        loaders = [psutil.Process(int(pid)) for pid in rank.stdout.readline().split()]
        masks = []
        for loader in loaders:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{loader.pid}/status").read_text().splitlines())
            masks.append(int(status["SigIgn"], 16))
        rank.kill()
        killed = time.monotonic()
        gone, alive = psutil.wait_procs(loaders, timeout=3)
    assert len(gone) == 2, (alive, time.monotonic() - killed)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
        assert all(ignored >> (number - 1) & 1 for ignored in masks), number
