"""Datasets are a function of their spec, and appear complete or not at all."""

from __future__ import annotations

import io
import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scalelab.data import generate
from scalelab.data.errors import DataError
from scalelab.data.generate import ensure_dataset, make_dataset, render_sample
from scalelab.data.manifest import check_dataset, load_manifest
from scalelab.data.readers.samples import SampleReader
from scalelab.data.scene import make_scene
from scalelab.data.spec import DatasetSpec, cache_folder

from .conftest import SPEC


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_bytes_do_not_depend_on_the_number_of_processes(dataset: Path, tmp_path: Path) -> None:
    """One process and three write bitwise the same shards and manifest, and report every sample once."""
    calls: list[tuple[int, int]] = []
    make_dataset(tmp_path / "three", SPEC, workers=3, progress=lambda done, total: calls.append((done, total)))
    assert contents(tmp_path / "three") == contents(dataset)
    assert calls == [(done, 32) for done in range(1, 33)]
    assert not multiprocessing.active_children()


def test_every_field_changes_the_name_and_the_seed_changes_the_scene() -> None:
    """Two specs that differ in any field never share a folder; other seeds and splits draw other scenes."""
    others = {"distortion": False, "train_samples": 25, "val_samples": 9}
    names = {SPEC.name} | {
        replace(SPEC, **{name: others.get(name, getattr(SPEC, name) + 1)}).name for name in vars(SPEC)
    }
    assert len(names) == len(vars(SPEC)) + 1
    first = render_sample(SPEC, "train", 0)
    assert render_sample(SPEC, "train", 0) == first
    for other in (render_sample(replace(SPEC, seed=1), "train", 0), render_sample(SPEC, "val", 0)):
        assert other["lidar.npy"] != first["lidar.npy"]
        assert other["cam0.jpg"] != first["cam0.jpg"]


def test_what_nothing_can_sense_is_not_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a truck, a building, someone behind the truck and a car ahead, the truck and the car are labelled."""
    boxes = np.array([
        [0.0, 6.0, 4.0, 24.0, 2.0, 8.0, 0.0],
        [0.0, -14.0, 4.0, 10.0, 8.0, 8.0, 0.0],
        [0.0, 9.0, 0.85, 0.6, 0.7, 1.7, 0.0],
        [15.0, 0.0, 0.8, 4.5, 1.9, 1.6, 0.0],
    ])  # fmt: skip
    scene = replace(
        make_scene(np.random.Generator(np.random.Philox(0))),
        boxes=boxes,
        classes=np.array([0, -1, 1, 0]),
        colours=np.full((4, 3), 0.5),
    )
    monkeypatch.setattr(generate, "make_scene", lambda random: scene)
    labels = np.load(io.BytesIO(member(render_sample(SPEC, "train", 0), "boxes.npy")))
    assert labels[:, 0].tolist() == [0, 0]
    assert np.allclose(labels[:, 1:], boxes[[0, 3]])


def member(sample: dict[str, bytes | str], name: str) -> bytes:
    content = sample[name]
    assert isinstance(content, bytes)
    return content


def test_scenes_differ_and_hold_every_class(dataset: Path) -> None:
    """Point counts vary, and over a few dozen scenes every class occurs, vehicles most."""
    entries = [entry for split in ("train", "val") for entry in load_manifest(dataset).split(split)]
    reader = SampleReader(dataset, entries, None)
    samples = [reader[number] for number in range(len(entries))]
    reader.close()
    counts = np.bincount(np.concatenate([sample["classes"] for sample in samples]), minlength=3)
    assert counts[0] > counts[1] + counts[2]
    assert counts.min() > 0
    assert len({len(sample["points"]) for sample in samples}) > 10


def test_a_second_call_makes_nothing(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete dataset is returned without writing."""
    monkeypatch.setattr(generate, "make_dataset", lambda *_, **__: pytest.fail("made again"))
    assert ensure_dataset(SPEC, dataset.parent) == dataset


def test_callers_at_the_same_time_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four callers at once get one folder, written once."""
    made: list[Path] = []

    def counting(folder: Path, spec: DatasetSpec, **options: object) -> None:
        made.append(folder)
        make_dataset(folder, spec, workers=1)

    monkeypatch.setattr(generate, "make_dataset", counting)
    small = replace(SPEC, train_samples=2, val_samples=0)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: ensure_dataset(small, tmp_path), range(4)))
    assert len(made) == 1
    assert len(set(folders)) == 1
    assert check_dataset(folders[0]) == []


def test_a_failure_leaves_nothing_half_made(tmp_path: Path) -> None:
    """An error in the middle, and the remains of a killed process, leave no dataset under its name and no part."""
    small = replace(SPEC, train_samples=3, val_samples=0)
    remains = tmp_path / f".{small.name}.partial"
    remains.mkdir()
    (remains / "train-000000.tar").write_bytes(b"half")

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_dataset(small, tmp_path, workers=1, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert check_dataset(ensure_dataset(small, tmp_path, workers=1)) == []


def test_a_damaged_cache_is_named(damaged: Path) -> None:
    """A shard of a generated dataset that lost bytes stops the next call, which says what to delete."""
    folder = damaged.rename(damaged.parent / SPEC.name)
    shard = folder / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-000001\.tar.*delete"):
        ensure_dataset(SPEC, folder.parent)


@pytest.mark.parametrize(
    ("field", "value"),
    [("train_samples", -1), ("cameras", 0), ("width", 9000), ("jpeg_quality", 101), ("seed", 1.5), ("width", True)],
)
def test_a_spec_out_of_range_is_refused(field: str, value: object) -> None:
    """The message names the field, the value and the allowed range."""
    with pytest.raises(DataError, match=rf"{field} = {value}: must be .* from \d+ to \d+"):
        replace(SPEC, **{field: value})  # type: ignore[arg-type]


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute XDG_CACHE_HOME is used, a relative one is not, as its specification says."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/scalelab/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache/scalelab/data"


def test_planning_and_rendering_import_no_torch() -> None:
    """Specs, manifests and the rendering processes do without torch and webdataset."""
    code = "import scalelab.data.generate, scalelab.data.manifest, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
