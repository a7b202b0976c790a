"""Text from outside made safe to print: names, paths and messages can hold anything."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """`text` without terminal escapes, control and direction-changing characters (tabs and newlines stay)."""
    return _CONTROL.sub("�", _ESCAPE.sub("", text))
