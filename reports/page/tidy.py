"""Names, paths and messages can hold anything: what a report takes in, made safe to lay out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Terminal escapes; control characters but tab and newline; those that turn the direction of the text after them.
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def tidy(value: Any) -> Any:
    """JSON `value` with every text in it, keys too, without control characters and halves of characters."""
    if isinstance(value, str):
        whole = value.encode("utf-8", "replace").decode("utf-8", "replace")
        return _CONTROL.sub(REPLACEMENT, _ESCAPE.sub("", whole))
    if isinstance(value, Mapping):
        return {tidy(str(key)): tidy(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(each) for each in value]
    return value
