"""Which rank is not where the others are, by what each rank's flight recorder lists. No torch on the reading side.

PyTorch's flight recorder keeps the last collectives of each rank with operation, sizes and sequence number:
https://docs.pytorch.org/tutorials/unstable/flight_recorder_tutorial.html
"""

from __future__ import annotations

import contextlib
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True)
class Odd:
    """A rank whose collectives differ from the others', and how, in words."""

    rank: int
    text: str


def dump(path: Path) -> None:
    """Write what this rank's flight recorder holds; nothing when there is no recorder. Never raises."""
    with contextlib.suppress(Exception):
        from torch._C import _distributed_c10d

        # Our own process's bytes, made this instant: nothing foreign is unpickled.
        # NCCL keeps a list apart from the one of gloo, whose only entries are then those of our own small group.
        dumper = getattr(_distributed_c10d, "_dump_nccl_trace", None) if _is_nccl() else None
        content = pickle.loads((dumper or _distributed_c10d._dump_fr_trace)())  # pyright: ignore
        entries = [
            {
                "group": str(entry["process_group"][0]),
                "sequence": entry["collective_seq_id"],
                "operation": entry["profiling_name"].rpartition(":")[2],
                "sizes": entry["input_sizes"],
            }
            for entry in content.get("entries", [])
            if not entry.get("is_p2p")
        ]
        partial = path.with_suffix(".partial")
        partial.write_bytes(orjson.dumps(entries))
        partial.rename(path)


def _is_nccl() -> bool:
    from torch import distributed

    return distributed.is_initialized() and distributed.get_backend().endswith("nccl")


def read(folder: Path, ranks: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """What the ranks dumped into the run folder, as far as they could."""
    found = {}
    for rank in ranks:
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            found[rank] = orjson.loads(dump_file(folder, rank).read_bytes())
    return found


def dump_file(folder: Path, rank: int) -> Path:
    return folder / "errors" / f"r{rank:03d}.collectives.json"


def odd_one_out(lists: Mapping[int, Sequence[Mapping[str, Any]]]) -> Odd | None:
    """The first difference between ranks: another operation or size at the same place, or one that never came.

    None when they agree, or when fewer than two ranks dumped. With two ranks that differ in an operation, the
    higher one is named, as nothing tells which of them is right; the text has both.
    """
    if len(lists) < 2:
        return None
    groups = sorted({entry["group"] for entries in lists.values() for entry in entries})
    for group in groups:
        # The recorder is a ring: older entries may be gone on the rank that did more.
        calls = {
            rank: {entry["sequence"]: entry for entry in entries if entry["group"] == group}
            for rank, entries in lists.items()
        }
        members = {rank: by_number for rank, by_number in calls.items() if by_number}
        if len(members) < 2:
            continue
        first = max(min(by_number) for by_number in members.values())
        last = max(max(by_number) for by_number in members.values())
        for number in range(first, last + 1):
            if found := _difference(number, {rank: by.get(number) for rank, by in members.items()}):
                return found
    return None


def last_of(entries: Sequence[Mapping[str, Any]]) -> str:
    """The last collective of a rank, as words to go on with."""
    return f" in collective {entries[-1]['sequence']}, {_shape(entries[-1])}" if entries else ""


def _difference(number: int, entries: Mapping[int, Mapping[str, Any] | None]) -> Odd | None:
    shapes = {rank: None if entry is None else _shape(entry) for rank, entry in entries.items()}
    if len(set(shapes.values())) == 1:
        return None
    counts = Counter(shapes.values())
    kinds = sorted(counts, key=lambda shape: (counts[shape], shape is not None))
    rarest = kinds[0]
    rank = max(rank for rank, shape in shapes.items() if shape == rarest)
    usual = kinds[-1]
    others = ", ".join(str(other) for other, shape in shapes.items() if shape == usual)
    does = "never came to it" if rarest is None else f"is in {rarest}"
    return Odd(rank, f"collective {number} is {usual} on rank {others}, rank {rank} {does}")


def _shape(entry: Mapping[str, Any]) -> str:
    sizes = "+".join("x".join(map(str, size)) for size in entry["sizes"]) or "nothing"
    return f"{entry['operation']} of {sizes}"
