"""What becomes of damaged samples: the first one ends the run, or up to a budget of them are left out and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .errors import DataError
from .shards import SampleEntry, Shard


@dataclass(frozen=True)
class BadSample:
    """One damaged sample or, with neither `key` nor `offset`, a shard from where it is damaged on. Printable text."""

    split: str
    shard: str
    key: str | None
    offset: int | None
    message: str

    @classmethod
    def of(cls, shard: Shard, entry: SampleEntry | None, error: DataError) -> BadSample:
        """What `error` says about the sample `entry` of `shard`, or about the shard as a whole."""
        key, offset = (None, None) if entry is None else (_printable(entry.key), entry.offset)
        return cls(shard.split, _printable(shard.name), key, offset, _printable(str(error)))


class BadSamples:
    """The distinct damaged samples met so far, at most `budget`; with a budget of 0 none is left out.

    `report` is called once for each. Kept in one process: loader processes send what they find along with batches.
    """

    def __init__(self, budget: int = 0, report: Callable[[BadSample], None] = lambda bad: None) -> None:
        if budget < 0:
            raise DataError(f"budget of damaged samples = {budget}: must be at least 0")
        self.budget = budget
        self._report = report
        self._seen: set[tuple[str, str | None, int | None]] = set()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, found: Iterable[BadSample]) -> None:
        """Counts and reports those of `found` that are new. Raises `DataError` when they exceed the budget."""
        for bad in found:
            place = (bad.shard, bad.key, bad.offset)
            if place in self._seen:
                continue
            self._seen.add(place)
            self._report(bad)
            if len(self) > self.budget:
                raise DataError(
                    f"more than {self.budget} damaged samples were met, the budget is skip:{self.budget}; the last is "
                    f"{bad.message}. Mend the data (scalelab data check lists what is wrong) or allow more"
                )


def _printable(text: str) -> str:
    """`text` without what would move a cursor, break a line or not encode: names in shards are anybody's."""
    return "".join(character if character.isprintable() else "?" for character in text)
