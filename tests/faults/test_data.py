"""Damaged shards met by the real command: named and fatal, or left out and counted, never silent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scalelab.data.generate import ensure_dataset
from scalelab.data.manifest import load_manifest
from scalelab.data.spec import DatasetSpec

from tests.faults.test_command import command

SPEC = DatasetSpec(train_samples=16, val_samples=4, cameras=6, width=160, height=96, samples_per_shard=4)


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, str]:
    """A set with one bit flipped in one training sample, and that sample's key."""
    folder = Path(shutil.copytree(ensure_dataset(SPEC, tmp_path / "made", workers=1), tmp_path / "copy"))
    shard, sample = load_manifest(folder).split("train")[5]
    content = bytearray((folder / shard.name).read_bytes())
    content[sample.offset + sample.bytes // 2] ^= 4
    (folder / shard.name).write_bytes(content)
    return folder, sample.key


@pytest.mark.fault(33)
def test_a_flipped_bit_ends_the_run_or_is_counted(tmp_path: Path, damaged: tuple[Path, str]) -> None:
    """Exit 4 with shard, sample and offset; with `--bad-data skip:2` exit 0, and the summary and the table tell."""
    folder, key = damaged
    options = ["--model=nano", f"--data={folder}", "--micro-batch=4", "--steps=3"]
    strict, lenient = command(tmp_path, *options), command(tmp_path, *options, "--bad-data=skip:2", "--name=lenient")
    _, errors = strict.communicate(timeout=100)
    assert strict.returncode == 4
    assert f"sample '{key}' at offset" in errors
    assert "Traceback" not in errors
    out, errors = lenient.communicate(timeout=100)
    assert lenient.returncode == 0, errors
    assert "1 damaged" in out
    summary = json.loads(next(tmp_path.glob("*-lenient-*/summary.json")).read_text())
    assert summary["data"]["skipped_samples"] == 1
    assert summary["data"]["skipped"][0]["key"] == key
