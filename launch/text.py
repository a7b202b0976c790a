"""Text from outside made safe to print and to keep: names, paths and messages can hold anything, secrets too."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """`text` without terminal escapes, control and direction-changing characters (tabs and newlines stay)."""
    return _CONTROL.sub("�", _ESCAPE.sub("", text))


def all_plain(value: Any) -> Any:
    """A nest of dicts and lists with each of its texts made plain, keys too."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {all_plain(key): all_plain(each) for key, each in value.items()}
    return [all_plain(each) for each in value] if isinstance(value, list | tuple) else value


_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
_USER_IN_ADDRESS = re.compile(r"(?<=://)([^\s@/]*|[^\s@/]+:[^\s@]+)@")
_SECRET_IN_QUERY = re.compile(r"(?<=[?&])([\w-]*(?:key|token|secret|passw|auth|sig)[\w-]*=)[^&\s'\"]+", re.IGNORECASE)
# Of options, whose names say more than variables' do.
_SECRET_WORDS = {
    "key", "apikey", "token", "secret", "secrets", "password", "passwd", "passphrase", "pwd", "credential",
    "credentials", "auth", "authorization", "cookie",
}  # fmt: skip
# Shorter values stand in ordinary text by chance.
_SECRET_CHARACTERS = 8
HIDDEN = "[hidden]"


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` without the values of environment variables that are named like secrets, and without users and passwords
    in addresses."""
    text = _SECRET_IN_QUERY.sub(rf"\1{HIDDEN}", _USER_IN_ADDRESS.sub(f"{HIDDEN}@", text))
    values = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= _SECRET_CHARACTERS:
            text = text.replace(value, HIDDEN)
    return text


def redacted_argument(argument: str) -> str:
    """A word of a command line, without secrets, nor the value of an option that is named like one."""
    names = argument.split("=")
    for number, name in enumerate(names[:-1], start=1):
        if _is_secret(name):
            return f"{'='.join(names[:number])}={HIDDEN}"
    head, sign, value = argument.partition("={")
    if sign:
        try:
            return f"{head}={json.dumps(redacted_value(head, json.loads('{' + value)))}"
        except ValueError:  # no JSON
            return redacted(argument)
    return redacted(argument)


def redacted_value(name: str, value: Any) -> Any:
    """A value, without secrets; nothing of what is named like one, at any depth."""
    if isinstance(value, Mapping):
        return {key: redacted_value(f"{name}.{key}", each) for key, each in value.items()}
    if isinstance(value, list):
        return [redacted_value(name, each) for each in value]
    if value is None or isinstance(value, bool):
        return value
    if _is_secret(name):
        return HIDDEN
    return redacted(value) if isinstance(value, str) else value


def _is_secret(name: str) -> bool:
    """Whether a word of an option's name says so: `api_key` and `auth.token` do, `tokens` and `tokenizer` do not."""
    return not _SECRET_WORDS.isdisjoint(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
