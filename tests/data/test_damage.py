"""Damage to shards is found and named: by the check always, by the readers before a wrong byte reaches a batch."""

from __future__ import annotations

import re
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scalelab.data.errors import DataError
from scalelab.data.manifest import MANIFEST_NAME, check_dataset, load_manifest
from scalelab.data.readers.indexed import indexed_loader
from scalelab.data.readers.samples import SampleReader
from scalelab.data.readers.stream import stream_loader

SHARD = "train-000002.tar"
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """`path` with other content, for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def read_all(folder: Path) -> int:
    """Batches of one epoch of `folder`."""
    loader = indexed_loader(
        folder, split="train", rank=0, world_size=1, micro_batch=4, steps=6, shuffle=False, workers=0
    )
    return sum(1 for _ in loader)


def test_an_intact_dataset_has_no_problems(dataset: Path) -> None:
    """Nothing is found where nothing is wrong."""
    assert check_dataset(dataset) == []
    assert read_all(dataset) == 6


@pytest.mark.fault(32)
@fuzz
@given(share=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_found(damaged: Path, share: float) -> None:
    """A shard cut at any byte is reported with the bytes expected and found, and is never read as if whole."""
    content = (damaged / SHARD).read_bytes()
    cut = int(share * len(content))
    with changed(damaged / SHARD, content[:cut]):
        problems = check_dataset(damaged)
        assert problems[0].shard == SHARD
        assert f"expected {len(content)} bytes, found {cut}" in problems[0].message
        samples = next(shard for shard in load_manifest(damaged).shards if shard.name == SHARD).samples
        if cut < samples[-1].offset + samples[-1].bytes:
            with pytest.raises(DataError, match=f"{SHARD}: sample 'train0000.*truncated"):
                read_all(damaged)


@pytest.mark.fault(33)
@fuzz
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(damaged: Path, share: float, bit: int) -> None:
    """A bit flipped anywhere in a shard is reported, with the sample that it lies in; a reader refuses that one."""
    content = bytearray((damaged / SHARD).read_bytes())
    place = int(share * len(content))
    content[place] ^= 1 << bit
    with changed(damaged / SHARD, bytes(content)):
        (problem,) = check_dataset(damaged)
        assert problem.shard == SHARD
        samples = next(shard for shard in load_manifest(damaged).shards if shard.name == SHARD).samples
        hit = next((s for s in samples if s.offset <= place < s.offset + s.bytes), None)
        assert (problem.key, problem.offset) == ((hit.key, hit.offset) if hit else (None, None))
        if hit:
            with pytest.raises(DataError, match=f"{SHARD}: sample '{hit.key}' at offset {hit.offset}: CRC-32"):
                read_all(damaged)


@pytest.mark.fault(34)
def test_missing_empty_unknown_and_swapped_shards_are_told_apart(damaged: Path) -> None:
    """Each kind of damage to whole files has its own words, and all are reported at once."""
    (damaged / "train-000000.tar").unlink()
    (damaged / "train-000001.tar").write_bytes(b"")
    shutil.copy(damaged / "val-000000.tar", damaged / "train-000009.tar")
    keep = (damaged / "train-000003.tar").read_bytes()
    (damaged / "train-000003.tar").write_bytes((damaged / "train-000004.tar").read_bytes())
    (damaged / "train-000004.tar").write_bytes(keep)
    found = {problem.shard: str(problem) for problem in check_dataset(damaged)}
    assert re.search(r"expected \d+ bytes, cannot be read", found["train-000000.tar"])
    assert "empty" in found["train-000001.tar"]
    assert "holds the content of train-000004.tar" in found["train-000003.tar"]
    assert "holds the content of train-000003.tar" in found["train-000004.tar"]
    assert "not in the manifest" in found["train-000009.tar"]
    assert len(found) == 5
    with pytest.raises(DataError, match=r"train-000000\.tar"):
        read_all(damaged)


def edit(folder: Path, change: str) -> None:
    path = folder / MANIFEST_NAME
    content = orjson.loads(path.read_bytes())
    shards = content["shards"]
    if change == "duplicate":
        shards[1]["samples"][0][0] = shards[0]["samples"][0][0]
    elif change == "no samples":
        shards[0]["samples"] = []
    elif change == "schema":
        content["schema"] = 99
    elif change == "name":
        shards[0]["name"] = "../elsewhere.tar"
    elif change == "place":
        shards[0]["samples"][1][1] = 512
    elif change == "field":
        del shards[0]["bytes"]
    path.write_bytes(orjson.dumps(content) if change != "json" else b"{")


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("duplicate", "key occurs again"),
        ("no samples", "expected at least one sample"),
        ("schema", "schema is 99"),
        ("name", "must be a plain file name"),
        ("place", "overlaps"),
        ("field", "not a manifest"),
        ("json", "not a manifest"),
    ],
)
def test_a_wrong_manifest_is_named(damaged: Path, change: str, words: str) -> None:
    """What a manifest says wrongly, or a file that is none, is reported in words."""
    edit(damaged, change)
    assert any(words in str(problem) for problem in check_dataset(damaged))


@pytest.mark.slow
@pytest.mark.fault(32, 33)
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_none_of_two_thousand_damages_is_silent(damaged: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 2,000 cuts and of 2,000 single flipped bits at random places the check finds all, naming the place, and both
    readers each that lies in a sample; what lies behind the samples is not read."""
    random = np.random.Generator(np.random.Philox(20))
    content = (damaged / SHARD).read_bytes()
    samples = next(shard for shard in load_manifest(damaged).shards if shard.name == SHARD).samples
    counts: Counter[str] = Counter()
    for _ in range(2000):
        place, wrong = int(random.integers(len(content))), bytearray(content)
        if kind == "truncated":
            del wrong[place:]
            hit = next((sample for sample in samples if place < sample.offset + sample.bytes), None)
        else:
            wrong[place] ^= 1 << int(random.integers(8))
            hit = next((sample for sample in samples if sample.offset <= place < sample.offset + sample.bytes), None)
        with changed(damaged / SHARD, bytes(wrong)):
            problems = check_dataset(damaged)
            if problems and all(problem.shard == SHARD for problem in problems):
                counts["found by the check"] += 1
            if hit is None:
                counts["outside of samples"] += 1
                continue
            with pytest.raises(DataError, match=f"{SHARD}: sample '{hit.key}'"):
                read_all(damaged)
            counts["found by the reader"] += 1
            with pytest.raises(DataError, match=SHARD):
                streamed(damaged)
            counts["found by the stream"] += 1
    with capsys.disabled():
        print(f"\n2000 {kind}: {dict(counts)}")
    assert counts["found by the check"] == 2000
    for reader in ("reader", "stream"):
        assert counts[f"found by the {reader}"] + counts["outside of samples"] == 2000


@pytest.mark.fault(33)
@pytest.mark.parametrize("field", ["name", "checksum", "size", "type"])
def test_a_damaged_header_ends_no_shard_in_silence(damaged: Path, field: str) -> None:
    """tarfile takes a damaged header for the end of the archive; the stream reader does not, wherever it lies."""
    places = {"name": 0, "size": 124, "checksum": 148, "type": 156}
    shard = next(shard for shard in load_manifest(damaged).shards if shard.name == SHARD)
    content = (damaged / SHARD).read_bytes()
    for sample in shard.samples:
        # The header of the second member: the first ones were read by then.
        second = content.index(f"{sample.key}.".encode(), sample.offset + 512)
        for start in (sample.offset, second):
            wrong = bytearray(content)
            wrong[start + places[field]] ^= 1
            with changed(damaged / SHARD, bytes(wrong)):
                with pytest.raises(DataError, match=SHARD):
                    streamed(damaged)


def streamed(folder: Path) -> int:
    """Batches of one epoch of `folder`, by the stream reader."""
    made = stream_loader(folder, split="train", rank=0, world_size=1, micro_batch=4, steps=6, shuffle=False)
    return sum(1 for _ in made)


@pytest.mark.fault(33)
@fuzz
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found_while_streaming(damaged: Path, share: float, bit: int) -> None:
    """By its checksum, where it leaves a picture that decodes and headers that can be read."""
    content = bytearray((damaged / SHARD).read_bytes())
    samples = next(shard for shard in load_manifest(damaged).shards if shard.name == SHARD).samples
    place = int(share * (samples[-1].offset + samples[-1].bytes))
    content[place] ^= 1 << bit
    with changed(damaged / SHARD, bytes(content)):
        with pytest.raises(DataError, match=SHARD):
            streamed(damaged)


@pytest.mark.fault(34)
def test_swapped_shards_are_found_while_streaming(damaged: Path) -> None:
    """Shards of equal size hold the samples that the manifest lists, or the stream ends."""
    first, second = (damaged / f"train-00000{number}.tar" for number in (0, 1))
    left, right = first.read_bytes(), second.read_bytes()
    length = max(len(left), len(right))
    content = orjson.loads((damaged / MANIFEST_NAME).read_bytes())
    for shard in content["shards"][:2]:
        shard["bytes"] = length
    (damaged / MANIFEST_NAME).write_bytes(orjson.dumps(content))
    first.write_bytes(right.ljust(length, b"\0"))
    second.write_bytes(left.ljust(length, b"\0"))
    with pytest.raises(DataError, match=r"expected sample 'train00000000', found 'train00000004'.*swapped"):
        streamed(damaged)


@pytest.mark.fault(58)
def test_a_manifest_that_claims_any_size_takes_no_memory(damaged: Path) -> None:
    """A terabyte claimed for a sample is compared with what is there before memory is taken for it."""
    content = orjson.loads((damaged / MANIFEST_NAME).read_bytes())
    last = content["shards"][-1]
    last["samples"][-1][2] = 1 << 40
    last["bytes"] = 1 << 41
    (damaged / MANIFEST_NAME).write_bytes(orjson.dumps(content))
    tracemalloc.start()
    problems = check_dataset(damaged)
    reader = SampleReader(damaged, load_manifest(damaged).split("val"), None)
    with pytest.raises(DataError, match="truncated"):
        reader[len(reader) - 1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert problems[0].shard == last["name"]
    assert peak < 16 << 20


def test_the_digest_changes_with_the_data(damaged: Path, dataset: Path) -> None:
    """Equal manifests have equal digests, and any change of the file another one."""
    assert load_manifest(damaged).digest == load_manifest(dataset).digest
    edit(damaged, "duplicate")
    assert load_manifest(damaged).digest != load_manifest(dataset).digest


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A folder that is not there, or holds no shards, is an error that names it."""
    for folder, words in ((tmp_path / "no\nne", "no such folder"), (tmp_path, r"no \.tar shards")):
        with pytest.raises(DataError, match=words):
            read_all(folder)
        assert re.search(words, str(check_dataset(folder)[0]))
