"""Values as JSON: what JSON has no word for becomes text, and no line is longer than can be read again."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import orjson

from .records import CommPlanRecord, Record, StepRecord
from .used import BatchesRecord

# Nothing that is read again line by line is longer: what a record holds beyond it is cut.
MAX_RECORD_BYTES = 1 << 20
_MAX_DEPTH = 32


def line_of(record: Record) -> bytes:
    """`record` as one line of JSON; a number that is not finite is null."""
    try:
        line = _encoder.encode(record)
    except (TypeError, ValueError, OverflowError):  # what JSON has no word for
        line = orjson.dumps(_plain(record))
    if len(line) < MAX_RECORD_BYTES or isinstance(record, StepRecord | CommPlanRecord | BatchesRecord):
        # Numbers alone, as many as there are micro-batches and collectives: to leave some out would change what they
        # say.
        return line + b"\n"
    content = orjson.loads(line)
    for limit in (1000, 100, 10, 1):
        line = orjson.dumps({name: _plain(value, limit) for name, value in content.items()})
        if len(line) < MAX_RECORD_BYTES:
            break
    return line + b"\n"


def _item(value: Any) -> Any:
    """A number of numpy's or torch's as Python's own; TypeError for what is none."""
    if callable(item := getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        return item()
    raise TypeError(f"JSON has no word for a {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_item)


def encode(value: Any, option: int = 0) -> bytes:
    """`value` as JSON. What JSON has no word for becomes text: an error may hold any name or object."""
    try:
        return orjson.dumps(value, option=option)
    except TypeError:
        return orjson.dumps(_plain(value), option=option)


def _plain(value: Any, limit: int = MAX_RECORD_BYTES, depth: int = 0) -> Any:
    """`value` in JSON's own types, texts and lists cut to `limit`."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return value
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        value = {**({} if tag is None else {"kind": tag}), **msgspec.structs.asdict(value)}
    if depth < _MAX_DEPTH and isinstance(value, dict):
        entries = itertools.islice(value.items(), limit)
        return {_plain(str(key), limit): _plain(entry, limit, depth + 1) for key, entry in entries}
    if depth < _MAX_DEPTH and isinstance(value, list | tuple):
        return [_plain(entry, limit, depth + 1) for entry in value[:limit]]
    # Names of files may hold bytes that are no text.
    text = str(value).encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[:limit] + "…"
