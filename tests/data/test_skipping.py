"""Damaged samples are left out up to a budget, counted, and change nothing else about what is trained on."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scalelab.data.batch import collate
from scalelab.data.errors import DataError
from scalelab.data.manifest import load_manifest
from scalelab.data.readers.indexed import IndexedLoader, indexed_loader
from scalelab.data.readers.samples import SampleReader
from scalelab.data.readers.stream import StreamLoader, stream_loader
from scalelab.data.schema import BATCH_KEYS
from scalelab.data.skipping import BadSample, BadSamples

from .test_decode import WRONG, Members, members

fuzz = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
READERS = (indexed_loader, stream_loader)
Loader = Callable[..., IndexedLoader | StreamLoader]


def request(**options: object) -> dict[str, Any]:
    return {"split": "train", "rank": 0, "world_size": 1, "micro_batch": 2, **options}


def damage(folder: Path, numbers: set[int]) -> None:
    """Makes the first picture of these training samples undecodable; checksums find it too."""
    for shard, entry in (load_manifest(folder).split("train")[number] for number in numbers):
        path = folder / shard.name
        content = bytearray(path.read_bytes())
        place = content.index(b"\xff\xd8\xff", entry.offset)
        content[place : place + 3] = b"not"
        path.write_bytes(content)


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[key], right[key]) for key in BATCH_KEYS)


def stand_in(number: int, bad: set[int], total: int = 24) -> int:
    """The sample that is read in the place of `number`."""
    return next(other % total for other in range(number, number + total) if other % total not in bad)


@pytest.mark.fault(32, 33)
@fuzz
@given(
    bad=st.sets(st.integers(0, 23), max_size=6),
    split=st.sampled_from([(1, 8, 1), (2, 4, 1), (2, 2, 2), (4, 1, 2)]),
    seed=st.integers(0, 2**40),
)
def test_global_batches_stay_but_for_stand_ins(
    dataset: Path, tmp_path: Path, bad: set[int], split: tuple[int, int, int], seed: int
) -> None:
    """For any division over ranks a global batch is that of the intact data, with the next readable sample in the
    place of each damaged one; every rank counts those that it met."""
    world, micro, accumulation = split
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(dataset, folder)
    damage(folder, bad)
    intact = SampleReader(dataset, load_manifest(dataset).split("train"), None)
    for rank in range(world):
        counted = BadSamples(budget=len(bad) + 1)
        options = {"rank": rank, "world_size": world, "micro_batch": micro, "accumulation": accumulation}
        made = indexed_loader(folder, **request(**options, steps=4, seed=seed), bad=counted)
        numbers = list(made.sample_numbers())
        for batch, part in zip(made, numbers, strict=True):
            assert equal(batch, collate([intact[stand_in(number, bad)] for number in part]))
        tried = {
            other % 24 for number in itertools.chain(*numbers) for other in range(number, number + 24)
            if all(between % 24 in bad for between in range(number, other))
        }  # fmt: skip
        assert len(counted) == len(tried & bad)
    intact.close()


@pytest.mark.parametrize("loader", READERS)
def test_a_budget_costs_nothing_where_nothing_is_damaged(dataset: Path, loader: Loader) -> None:
    """Intact data gives the same batches under either policy, bit for bit."""
    counted = BadSamples(budget=3, report=lambda bad: pytest.fail(str(bad)))
    left = list(loader(dataset, **request(steps=12, seed=5)))
    right = list(loader(dataset, **request(steps=12, seed=5), bad=counted))
    assert len(left) == len(right) == 12
    assert all(map(equal, left, right))


@pytest.mark.fault(32, 36)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", READERS)
def test_each_is_reported_once_and_the_budget_holds(damaged: Path, loader: Loader, workers: int) -> None:
    """Over epochs and loader processes each damaged sample is reported once; one more than the budget is an error
    that names the budget and the sample, and the processes end."""
    bad = {1, 10, 17}
    damage(damaged, bad)
    entries = load_manifest(damaged).split("train")
    places = {(entries[number][0].name, entries[number][1].key, entries[number][1].offset) for number in bad}
    reported: list[BadSample] = []
    counted = BadSamples(budget=3, report=reported.append)
    batches = list(loader(damaged, **request(steps=40, workers=workers), bad=counted))
    assert [batch["ego"].shape[0] for batch in batches] == [2] * 40
    assert sorted((found.shard, found.key, found.offset) for found in reported) == sorted(places)
    assert all(found.shard in found.message and found.split == "train" for found in reported)
    with pytest.raises(
        DataError, match=r"more than 2 damaged samples.*skip:2; the last is train-0.*scalelab data check"
    ):
        list(loader(damaged, **request(steps=40, workers=workers), bad=BadSamples(budget=2)))
    with pytest.raises(DataError, match="train-0") as error:
        list(loader(damaged, **request(steps=40, workers=workers)))
    assert "budget" not in str(error.value)
    del error
    assert not multiprocessing.active_children()


@pytest.mark.fault(32, 34)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("loader", READERS)
def test_nothing_readable_is_an_error_and_no_endless_search(damaged: Path, loader: Loader, workers: int) -> None:
    """With every sample damaged, or every shard gone, and a budget for all of it, the reader says so and ends."""
    damage(damaged, set(range(24)))
    with pytest.raises(DataError, match=r"none of the 24 samples can be read|no sample of this rank's train shards"):
        list(loader(damaged, **request(workers=workers), bad=BadSamples(budget=1000)))
    for path in damaged.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(DataError, match=r"none of the 24 samples can be read|no sample of this rank's train shards"):
        list(loader(damaged, **request(workers=workers), bad=BadSamples(budget=1000)))


def streamed(folder: Path, counted: BadSamples, micro_batches: int) -> list[bytes]:
    """The ego states of the first micro-batches of one sample each, in file order."""
    made = stream_loader(folder, **request(micro_batch=1, steps=micro_batches, shuffle=False), bad=counted)
    return [batch["ego"].numpy().tobytes() for batch in made]


@pytest.mark.fault(32, 33, 34)
@pytest.mark.parametrize("kind", ["missing", "truncated", "header", "compressed"])
def test_a_stream_leaves_out_a_shard_from_where_it_is_damaged(damaged: Path, kind: str) -> None:
    """The shards before and after it are read whole, and it counts once."""
    whole = streamed(damaged, BadSamples(), 24)
    path = damaged / "train-000002.tar"
    content = bytearray(path.read_bytes())
    kept = 0
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[:-2000])
    elif kind == "compressed":
        path.write_bytes(b"\x1f\x8b" + bytes(len(content) - 2))
    else:
        third = load_manifest(damaged).split("train")[10][1]
        content[third.offset] ^= 1
        path.write_bytes(content)
        # To tarfile the archive ends there, so that the second sample may be a part of one.
        kept = 1
    reported: list[BadSample] = []
    found = streamed(damaged, BadSamples(budget=1, report=reported.append), 20)
    (bad,) = reported
    assert (bad.shard, bad.key, bad.offset) == ("train-000002.tar", None, None)
    assert found == whole[: 8 + kept] + whole[12 : 24 - kept]


def packed(folder: Path, samples: list[Members], prefix: str = "") -> Path:
    folder.mkdir()
    with tarfile.open(folder / "own.tar", "w") as tar:
        for number, fields in enumerate(samples):
            for name, content in fields.items():
                info = tarfile.TarInfo(f"{prefix}scene{number}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.mark.fault(36, 37)
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_stops_or_is_left_out_by_policy(tmp_path: Path, case: str) -> None:
    """In shards without checksums each kind of wrong field ends the run, naming key and field, or costs that sample."""
    change, words = WRONG[case]
    samples = [members(number) for number in range(3)]
    change(samples[1])
    folder = packed(tmp_path / "own", samples)
    for loader in READERS:
        with pytest.raises(DataError, match=words) as error:
            list(loader(folder, **request(micro_batch=1, steps=3, shuffle=False)))
        assert "scene1" in str(error.value)
        reported: list[BadSample] = []
        options = request(micro_batch=1, steps=2, shuffle=False)
        assert len(list(loader(folder, **options, bad=BadSamples(1, reported.append)))) == 2
        assert [(bad.key, bad.shard) for bad in reported] == [("scene1", "own.tar")]


@pytest.mark.parametrize("loader", READERS)
def test_names_are_reported_without_control_characters(tmp_path: Path, loader: Loader) -> None:
    """What a shard calls its samples moves no cursor and breaks no line."""
    samples = [members(number) for number in range(2)]
    samples[0]["ego.npy"] = b"x"
    folder = packed(tmp_path / "own", samples, prefix="\x1b[31m\n\u202e")
    reported: list[BadSample] = []
    assert (
        len(list(loader(folder, **request(micro_batch=1, steps=1, shuffle=False), bad=BadSamples(1, reported.append))))
        == 1
    )
    (bad,) = reported
    assert bad.key == "?[31m??scene0"
    assert bad.message.isprintable()
