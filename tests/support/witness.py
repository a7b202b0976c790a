"""An independent witness of what ranks send: PyTorch's flight recorder, which lists every collective of the backend.

It sits below all libraries, in the backend itself. On gloo a reduce-scatter is carried out, and listed, as the
all-reduce of the whole tensor.
"""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

from torch._C import _distributed_c10d

DTYPES = {"Float": 4, "BFloat16": 2, "Half": 2, "Double": 8, "Long": 8, "Int": 4, "Byte": 1, "Bool": 1, "Char": 1}
ON_GLOO = {"reduce_scatter": "all_reduce"}


class Witness:
    """Collectives of this rank since the last look."""

    def __init__(self) -> None:
        self._seen = -1
        self.payload_bytes()

    def payload_bytes(self) -> dict[str, int]:
        """Payload by kind since the last call: bytes of the full tensor, in the dtype as sent."""
        found: Counter[str] = Counter()
        for entry in self._entries():
            kind = entry["profiling_name"].removeprefix("gloo:")
            if kind == "barrier":
                continue
            sides = [(entry["input_sizes"], entry["input_dtypes"]), (entry["output_sizes"], entry["output_dtypes"])]
            found[kind] += max(sum(map(_bytes, sizes, dtypes)) for sizes, dtypes in sides)
        return {kind: count for kind, count in found.items() if count}

    def _entries(self) -> list[dict[str, Any]]:
        dump = pickle.loads(_distributed_c10d._dump_fr_trace())  # pyright: ignore[reportAttributeAccessIssue]
        fresh = [entry for entry in dump.get("entries", []) if entry["record_id"] > self._seen]
        ids = [entry["record_id"] for entry in fresh]
        assert self._seen < 0 or not ids or min(ids) == self._seen + 1, "the recorder's ring was too small"
        self._seen = max(ids, default=self._seen)
        return fresh


def _bytes(sizes: list[int], dtype: str) -> int:
    count = DTYPES[dtype]
    for size in sizes:
        count *= size
    return count
