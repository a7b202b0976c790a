"""The errors of this package: something is wrong with shards or samples, or a process that reads them died."""

from __future__ import annotations


class DataError(ValueError):
    """Raised for anything wrong with shards, samples or how they are asked for.

    The message names the shard, the key and the field where they are known, what was found, what was
    expected and the way out. It has one argument, so that it survives the way out of a loader process.
    """


class LoaderDied(ValueError):  # noqa: N818 (it names what happened, and status.json holds it)
    """A loader process ended before its work was done. The message, one line, names it and how it ended; `hint`, one
    line, says what usually does that and what helps."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
