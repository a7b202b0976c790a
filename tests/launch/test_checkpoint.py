"""A checkpoint is there whole or not at all, and a failed one is known on every rank."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from scalelab.launch import checkpoint
from scalelab.launch.checkpoint import MANIFEST, CheckpointFailed, newest, save, verify
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._contract import Gradients, Sharded
from scalelab.profiles import storage
from scalelab.profiles.runfolder import RunFolder

from tests.support.checkpoints import found_step, names
from tests.support.planted import KILLED, each_call_failing, each_call_killed


class TwoFiles(Sharded):
    """Saves two files, one in a folder, by single calls to the system."""

    def __init__(self, content: bytes) -> None:
        super().__init__(torch.nn.Identity(), Setting(world_size=1, device="cpu"))
        self.content = content

    def save(self, folder: Path) -> None:
        os.mkdir(folder / "inner")
        for name in ("first", "inner/second"):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o644)
            storage.write_all(descriptor, self.content)
            os.close(descriptor)

    def forward(self, batch: Any, last: bool) -> torch.Tensor:
        raise NotImplementedError

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        raise NotImplementedError

    def step(self, last: bool) -> None:
        raise NotImplementedError

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return []

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        raise NotImplementedError

    def gradients(self) -> Gradients:
        raise NotImplementedError

    def parameters(self) -> Iterator[torch.Tensor]:
        return iter(())

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        return iter(())


def saved(folder: RunFolder, step: int, content: bytes = b"x" * 50) -> Path:
    found = save(TwoFiles(content), folder, step=step, strategy="single")
    assert found["bytes"] == 2 * len(content)
    return folder.path / found["path"]


def test_a_checkpoint_is_named_when_whole(tmp_path: Path) -> None:
    """Its manifest holds every file with bytes and CRC-32; `latest` points to it; the two newest stay."""
    folder = RunFolder.create(tmp_path, "x")
    assert newest(folder) is None
    for step in (1, 2, 3):
        path = saved(folder, step, b"abc" * step)
        found = newest(folder)
        assert found is not None
        assert (found[0], found[1]["step"]) == (path, step)
        assert found[1]["files"]["inner/second"] == {"bytes": 3 * step, "crc32": checkpoint._crc32(path / "first")}
        assert found[1]["world_size"] == 1
        assert "torch" in found[1]["versions"]
        assert (folder.path / "checkpoints" / "latest").resolve() == path
    assert names(folder) == {"step-000002", "step-000003", "latest"}


def test_an_earlier_step_after_going_back_is_the_newest(tmp_path: Path) -> None:
    """A run that was resumed from step 1 writes step 2 after an abandoned step 9: it is kept, found and replaceable."""
    folder = RunFolder.create(tmp_path, "x")
    for step in (1, 9, 2, 2):
        saved(folder, step)
        assert found_step(folder) == step
    assert names(folder) == {"step-000002", "step-000009", "latest"}


@pytest.fixture
def no_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up the packages' versions is most of a small save's time."""
    monkeypatch.setattr(checkpoint, "versions", dict)


def old_and_new(folder: RunFolder) -> None:
    """Two checkpoints to be kept or replaced, and what an attempt before has left."""
    saved(folder, 1)
    saved(folder, 2)
    leftover = folder.path / "checkpoints" / "step-000003.partial"
    leftover.mkdir()
    (leftover / "first").write_bytes(b"half")
    shutil.copytree(leftover.parent, folder.path / "as it was", symlinks=True)


def back(folder: RunFolder) -> None:
    """The checkpoints of `old_and_new` again."""
    shutil.rmtree(folder.path / "checkpoints")
    shutil.copytree(folder.path / "as it was", folder.path / "checkpoints", symlinks=True)


@pytest.mark.fault(29, 31)
@pytest.mark.usefixtures("no_versions")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whichever_call_fails_a_whole_checkpoint_is_found(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one or the new one, nothing half, and the next save succeeds."""
    monkeypatch.setattr(storage, "PAUSES_SECONDS", (0.0, 0.0))
    folder = RunFolder.create(tmp_path, "x")
    old_and_new(folder)
    failures = 0
    for failure in each_call_failing(lambda: saved(folder, 3), code, lasting=True, documented=CheckpointFailed):
        assert found_step(folder) in ((2, 3) if failure else (3,))
        for path in (folder.path / "checkpoints").glob("step-??????"):
            assert verify(path) == []
        if isinstance(failure, CheckpointFailed):
            failures += 1
            assert failure.rank == 0
            assert "bytes free" in str(failure)
            assert failure.hint
        saved(folder, 4)
        assert names(folder) >= {"step-000004", "latest"}
        assert not [name for name in names(folder) if name.endswith(".partial")]
        back(folder)
    assert failures > 15


@pytest.mark.fault(29)
@pytest.mark.usefixtures("no_versions")
def test_a_checkpoint_of_the_same_step_is_replaced_or_kept(tmp_path: Path) -> None:
    """One failing call leaves the one that was there, or the new one."""
    folder = RunFolder.create(tmp_path, "x")
    old_and_new(folder)
    for failure in each_call_failing(lambda: saved(folder, 2, b"new"), errno.ENOSPC, documented=CheckpointFailed):
        found = newest(folder)
        assert found is not None
        assert found[1]["step"] == 2
        assert found[1]["files"]["first"]["bytes"] in ((3, 50) if failure else (3,))
        back(folder)


@pytest.mark.fault(6, 29)
@pytest.mark.usefixtures("no_versions")
def test_a_process_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """kill -9 at each call of a save: the old one or the new one, and the next save cleans up."""
    folder = RunFolder.create(tmp_path, "x")
    ends = []
    old_and_new(folder)
    for code in each_call_killed(lambda: saved(folder, 3)):
        ends.append(code)
        assert found_step(folder) in ((2, 3) if code == KILLED else (3,))
        for path in (folder.path / "checkpoints").glob("step-??????"):
            assert verify(path) == []
        saved(folder, 4)
        assert not [name for name in names(folder) if name.endswith(".partial")]
        back(folder)
    assert ends[-1] == 0
    assert len(ends) > 15


@pytest.mark.fault(29)
def test_a_checkpoint_that_cannot_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less room than the one before took, nothing is written: the run's records need what is left."""
    folder = RunFolder.create(tmp_path, "x")
    saved(folder, 1, b"x" * 1000)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda path: 1999)
    with pytest.raises(CheckpointFailed, match=r"the disk is full \(.* bytes free, [\d,]+ needed\)"):
        saved(folder, 2, b"x" * 1000)
    assert names(folder) == {"step-000001", "latest"}


@pytest.mark.fault(56)
def test_damage_is_found_and_an_older_checkpoint_used(tmp_path: Path) -> None:
    """A missing, cut, changed, foreign or unfinished one is passed over by name, with what is wrong with it."""
    folder = RunFolder.create(tmp_path, "x")
    place = folder.path / "checkpoints"

    def flip(path: Path) -> None:
        content = bytearray((path / "first").read_bytes())
        content[7] ^= 1
        (path / "first").write_bytes(content)

    def rewrite(path: Path, **changes: Any) -> None:
        manifest = orjson.loads((path / MANIFEST).read_bytes())
        (path / MANIFEST).write_bytes(orjson.dumps({**manifest, **changes}))

    def link(path: Path) -> None:
        (path / "first").rename(place / "elsewhere")
        (path / "first").symlink_to(place / "elsewhere")

    damages = {
        "inner/second: missing": lambda path: (path / "inner" / "second").unlink(),
        "first: 3 bytes, expected 50": lambda path: (path / "first").write_bytes(b"abc"),
        "first: damaged": flip,
        "first: no regular file": link,
        "extra: not in MANIFEST.json": lambda path: (path / "extra").write_bytes(b""),
        "never finished": lambda path: (path / MANIFEST).unlink(),
        "cannot be read: JSONDecodeError": lambda path: (path / MANIFEST).write_bytes(b'{"files"'),
        "cannot be read: KeyError": lambda path: (path / MANIFEST).write_bytes(b"{}"),
        "cannot be read: TypeError": lambda path: (path / MANIFEST).write_bytes(b"[]"),
        "schema 9, this scalelab reads 1: upgrade": lambda path: rewrite(path, schema=9),
        "lies outside": lambda path: rewrite(path, files={"../../x": {"bytes": 1, "crc32": "0"}}),
        "names no files": lambda path: rewrite(path, files={}),
    }
    for expected, damage in damages.items():
        saved(folder, 1)
        path = saved(folder, 2)
        damage(path)
        notes: list[str] = []
        found = newest(folder, notes.append)
        assert found is not None
        assert found[1]["step"] == 1
        assert len(notes) == 1
        assert str(path) in notes[0]
        assert expected in notes[0], notes[0]
        shutil.rmtree(place)


@pytest.mark.fault(56)
def test_latest_is_a_hint_and_no_more(tmp_path: Path) -> None:
    """Missing, empty, pointing to a half one, to nothing or outside: the newest whole checkpoint is found anyway."""
    folder = RunFolder.create(tmp_path, "x")
    saved(folder, 1)
    saved(folder, 2)
    place = folder.path / "checkpoints"
    (place / "step-000003.partial").mkdir()
    (place / "latest").unlink()
    assert found_step(folder) == 2
    (place / "latest").write_text("")
    assert found_step(folder) == 2
    for target in ("step-000003.partial", "step-000009", "../..", "/etc"):
        (place / "latest").unlink()
        (place / "latest").symlink_to(target)
        assert found_step(folder) == 2


@pytest.mark.fault(59)
def test_nothing_is_unpickled_to_look_at_a_checkpoint(tmp_path: Path) -> None:
    """A pickle that would make a folder when loaded does not, whichever file it is in."""
    folder = RunFolder.create(tmp_path, "x")
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    path = saved(folder, 1, pickle.dumps(Evil()))
    assert verify(path) == []
    (path / MANIFEST).write_bytes(pickle.dumps(Evil()))
    assert verify(path)
    assert newest(folder) is None
    assert not marker.exists()
