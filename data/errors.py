"""The one error of this package: something is wrong with shards or samples."""

from __future__ import annotations


class DataError(ValueError):
    """Raised for anything wrong with shards, samples or how they are asked for.

    The message names the shard, the key and the field where they are known, what was found, what was
    expected and the way out. It has one argument, so that it survives the way out of a loader process.
    """
