"""A user's own shards: read without a manifest, whatever made them."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from scalelab.data.generate import render_sample
from scalelab.data.manifest import MANIFEST_NAME, check_dataset, index_folder, open_folder
from scalelab.data.readers.indexed import indexed_loader
from scalelab.data.readers.stream import stream_loader
from scalelab.data.schema import BATCH_KEYS
from scalelab.data.tar import split_name
from webdataset.tariterators import base_plus_ext

from .conftest import SPEC

Entry = tuple[tarfile.TarInfo, bytes]


def entries(count: int = 2, prefix: str = "") -> list[Entry]:
    """The members of `count` scenes."""
    found: list[Entry] = []
    for index in range(count):
        for name, content in render_sample(SPEC, "train", index).items():
            if isinstance(content, bytes):
                info = tarfile.TarInfo(f"{prefix}scene{index}.{name}")
                info.size = len(content)
                found.append((info, content))
    return found


def write(path: Path, members: list[Entry], kind: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def first_batch(folder: Path) -> dict[str, torch.Tensor]:
    made = indexed_loader(
        folder, split="train", rank=0, world_size=1, micro_batch=2, steps=1, shuffle=False, image_size=(48, 30)
    )
    return next(iter(made))


def named(name: str) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = 1
    return info, b"x"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("plain")
    write(folder / "a.tar", entries())
    return first_batch(folder)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./", "ein/langer/" * 12, "ünï/", "a.b/"], ids=range(5))
def test_shards_of_any_tar_dialect_are_read(
    tmp_path: Path, expected: dict[str, torch.Tensor], kind: int, prefix: str
) -> None:
    """ustar, GNU and pax archives, with long, nested and non-ASCII names, deliver the same batch."""
    if kind == tarfile.USTAR_FORMAT and len(prefix) > 100:
        prefix = prefix[:99] + "/"
    write(tmp_path / "shard.tar", entries(prefix=prefix), kind)
    batch = first_batch(tmp_path)
    assert all(torch.equal(batch[key], expected[key]) for key in BATCH_KEYS)
    assert check_dataset(tmp_path) == []


def test_hidden_files_are_passed_over(tmp_path: Path, expected: dict[str, torch.Tensor]) -> None:
    """The companion files that some systems pack along (`._name`) belong to no sample, for either reader."""
    members = [entry for pair in entries() for entry in (named(f"x/._{pair[0].name}"), pair)]
    write(tmp_path / "a.tar", members)
    request: dict = {"split": "train", "rank": 0, "world_size": 1, "micro_batch": 2, "image_size": (48, 30)}
    streamed = next(iter(stream_loader(tmp_path, **request, shuffle=False)))
    for batch in (first_batch(tmp_path), streamed):
        assert all(torch.equal(batch[key], expected[key]) for key in BATCH_KEYS)


def test_what_the_tar_command_packs_is_read(tmp_path: Path, expected: dict[str, torch.Tensor]) -> None:
    """A folder packed with `tar cf`, folders and all, is a shard."""
    (tmp_path / "scenes").mkdir()
    for info, content in entries():
        (tmp_path / "scenes" / info.name).write_bytes(content)
    command = ["tar", "--sort=name", "-C", str(tmp_path), "-cf", str(tmp_path / "s.tar"), "scenes"]
    subprocess.run(command, check=True)
    batch = first_batch(tmp_path)
    assert all(torch.equal(batch[key], expected[key]) for key in BATCH_KEYS)


@pytest.mark.parametrize("name", ["a.jpg", "x/a.cam0.jpg", "a.b/c.D.npy", "./a.txt", ".hidden", "plain"])
def test_keys_are_those_of_webdataset(name: str) -> None:
    """Names are split into key and field as webdataset splits them."""
    key, field = base_plus_ext(name)
    assert split_name(name) == ((key, field.lower()) if key and field else ("", ""))


def test_the_index_is_kept_outside_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look reads no headers, a changed shard is looked at again, and the user's folder is not written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    shard = write(folder / "train-a.tar", entries())
    write(folder / "val-a.tar", entries(1))
    first = index_folder(folder)
    assert [(s.name, s.split, len(s.samples)) for s in first.shards] == [
        ("train-a.tar", "train", 2),
        ("val-a.tar", "val", 1),
    ]
    with monkeypatch.context() as patch:
        patch.setattr("scalelab.data.manifest.index_shard", lambda *_, **__: pytest.fail("looked again"))
        assert index_folder(folder) == first
    os.utime(shard, ns=(1, 1))
    assert index_folder(folder).digest != first.digest
    assert sorted(path.name for path in folder.iterdir()) == ["train-a.tar", "val-a.tar"]
    assert not (folder / MANIFEST_NAME).exists()


def test_an_unwritable_cache_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a place for the index it is made each time, aloud."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    write(tmp_path / "a.tar", entries(1))
    with pytest.warns(UserWarning, match="is not kept"):
        assert len(open_folder(tmp_path).shards) == 1


def test_checking_goes_on_after_a_bad_sample(tmp_path: Path) -> None:
    """Without a manifest every sample is decoded, and each that does not decode is listed."""
    members = entries(3)
    broken = [(info, content) for info, content in members if info.name not in ("scene0.ego.npy", "scene2.calib.json")]
    write(tmp_path / "a.tar", broken)
    found = [(problem.key, problem.message) for problem in check_dataset(tmp_path)]
    assert [key for key, _ in found] == ["scene0", "scene2"]
    assert "ego.npy: missing" in found[0][1]
    assert "calib.json: missing" in found[1][1]
