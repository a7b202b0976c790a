"""The stream reader: the usual pipeline, on local files only, with our decoders."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import webdataset.utils
from scalelab.data.errors import DataError
from scalelab.data.readers.indexed import indexed_loader
from scalelab.data.readers.stream import StreamLoader, stream_loader
from scalelab.data.schema import BATCH_KEYS


@pytest.fixture(autouse=True)
def secure_mode() -> Iterator[None]:
    """Leaves webdataset as it was: the mode holds for the whole process."""
    before = webdataset.utils.enforce_security  # type: ignore[attr-defined]
    yield
    webdataset.utils.enforce_security = before  # type: ignore[attr-defined]


def loader(folder: Path, **options: object) -> StreamLoader:
    request: dict = {"split": "train", "rank": 0, "world_size": 1, "micro_batch": 2, **options}
    return stream_loader(folder, **request)


def scenes(batches: list[dict[str, torch.Tensor]]) -> Counter[bytes]:
    """How often each scene occurs, by its ego state."""
    return Counter(row.numpy().tobytes() for batch in batches for row in batch["ego"])


def test_without_shuffling_it_reads_what_the_indexed_reader_reads(dataset: Path) -> None:
    """In file order both readers deliver the same batches, bit for bit."""
    streamed = list(loader(dataset, shuffle=False, steps=12))
    request: dict = {"split": "train", "rank": 0, "world_size": 1, "micro_batch": 2}
    indexed = list(indexed_loader(dataset, **request, shuffle=False, steps=12))
    for left, right in zip(streamed, indexed, strict=True):
        assert all(torch.equal(left[key], right[key]) for key in BATCH_KEYS)


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_the_shards_of_an_epoch(dataset: Path, workers: int) -> None:
    """Over one epoch the ranks see every scene exactly once between them, and their processes end."""
    seen: Counter[bytes] = Counter()
    for rank in range(3):
        # A rank has 2 of the 6 shards: 8 scenes, 4 batches of 2; a buffer over the epoch's end would mix epochs.
        seen += scenes(list(loader(dataset, rank=rank, world_size=3, steps=4, workers=workers, shuffle=False)))
    assert len(seen) == 24
    assert set(seen.values()) == {1}
    assert not multiprocessing.active_children()


def test_shuffling_depends_on_the_seed_alone(dataset: Path) -> None:
    """The same seed gives the same stream, another seed another one."""
    first, again, other = (scenes_in_order(loader(dataset, seed=seed, steps=6)) for seed in (1, 1, 2))
    assert first == again != other


def scenes_in_order(made: StreamLoader) -> list[bytes]:
    return [row.numpy().tobytes() for batch in made for row in batch["ego"]]


def test_it_goes_on_over_epochs(dataset: Path) -> None:
    """Endless by default; accumulation multiplies the micro-batches of a step."""
    made = loader(dataset)
    assert sum(1 for _ in zip(range(40), made, strict=False)) == 40
    made.close()
    assert sum(1 for _ in loader(dataset, steps=3, accumulation=4)) == 12
    assert (made.samples_per_epoch, made.steps_per_epoch, made.dropped_per_epoch) == (24, 12, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"world_size": 4, "workers": 2, "micro_batch": 1}, "6 shards, but 4 ranks × 2 loader processes"),
        ({"start_step": 3}, "cannot be resumed"),
        ({"micro_batch": 25}, "24 samples"),
    ],
)
def test_a_wrong_request_is_named(dataset: Path, options: dict[str, object], words: str) -> None:
    """Messages give the numbers and the way out."""
    with pytest.raises(DataError, match=words):
        loader(dataset, **options)


@pytest.mark.parametrize("folder", ["pipe:mkdir marker; cat x", "http://127.0.0.1:1/x", "file:/tmp"])
def test_urls_and_commands_are_not_folders(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What webdataset would run or fetch is a folder that is not there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        loader(Path(folder))
    assert not (tmp_path / "marker").exists()


def test_names_with_a_meaning_elsewhere_are_plain_files(damaged: Path, tmp_path: Path) -> None:
    """Shards in a folder named like a command are read, none of it is run; the secure mode is on."""
    folder = damaged.rename(tmp_path / "pipe:mkdir marker; cat {a,b}::x")
    assert sum(1 for _ in loader(folder, steps=2)) == 2
    assert webdataset.utils.enforce_security  # type: ignore[attr-defined]
    assert not any(path.name == "marker" for path in tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["truncated", "compressed", "payload"])
def test_damage_is_an_error(damaged: Path, damage: str, workers: int) -> None:
    """Truncated, exchanged and undecodable shards stop the stream with a DataError that names the shard."""
    shard = damaged / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        content = content[:-1024]
    elif damage == "compressed":
        content[:2] = b"\x1f\x8b"
        content[257:262] = bytes(5)
    else:
        place = content.index(b"\xff\xd8\xff")
        content[place : place + 3] = b"not"
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train-000000\.tar") as error:
        list(loader(damaged, steps=30, workers=workers))
    assert "\n" not in str(error.value)
    del error
    assert not multiprocessing.active_children()
