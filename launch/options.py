"""Command lines read into configs: options are the fields of a pydantic model, and every problem is found at once."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field
from pydantic.fields import FieldInfo

from .errors import ConfigError
from .validation import Model, validated


def option(group: str, text: str, default: Any, **limits: Any) -> Any:
    """A field of a model of options: its group in the help, its meaning, its default and its range."""
    return Field(default=default, description=text, json_schema_extra={"group": group}, **limits)


def _no_control_characters(text: Any) -> Any:
    if isinstance(text, str) and any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("a name without control characters such as a newline or a tab")
    return text


PlainText = Annotated[str, BeforeValidator(_no_control_characters)]

# Stands for an option that was given without a value.
_BARE = "\0bare"


def read_options(
    verb: str,
    summary: str,
    model: type[Model],
    flags: dict[str, str],
    argv: Sequence[str],
    *,
    positional: str | None = None,
) -> tuple[Model | None, set[str]]:
    """The options of `scalelab VERB ARGV` and the flags that were given; None once help was asked for and printed.

    Raises ConfigError with every problem at once.
    """
    front = Options(verb, summary, model, flags, positional=positional)
    values, given, problems = front.read(argv)
    if "help" in given:
        print(front.help())
        return None, given
    options, found = validated(model, values)
    if problems := [*problems, *found]:
        raise ConfigError(problems, hint=f"scalelab {verb} --help lists every option")
    return options, given


class Options:
    """The options of one verb: the fields of `model`, and `flags` (name and meaning) that are not part of it. What
    follows no option's name goes into the field `positional`, where there is one: a list, or a text for one at most."""

    def __init__(
        self,
        verb: str,
        summary: str,
        model: type[BaseModel],
        flags: dict[str, str],
        *,
        positional: str | None = None,
    ) -> None:
        self._fields = {name: field for name, field in model.model_fields.items() if name != positional}
        self._flags = flags
        self._positional = positional
        place = "" if positional is None else f" [{positional.upper()}{' ...' if _is_list(model, positional) else ''}]"
        self._several = positional is not None and _is_list(model, positional)
        self._parser = argparse.ArgumentParser(
            prog=f"scalelab {verb}",
            description=summary,
            allow_abbrev=False,
            add_help=False,
            usage=f"scalelab {verb}{place} [OPTION ...]",
        )
        if positional is not None:
            about = self._parser.add_argument_group("arguments")
            about.add_argument(
                dest=positional, nargs="*", metavar=positional.upper(), help=_help(model.model_fields[positional])
            )
        groups: dict[str, Any] = {}
        for name, field in self._fields.items():
            extra = typing.cast(dict[str, Any], field.json_schema_extra or {})
            title = extra.get("group", "options")
            group = groups.setdefault(title, self._parser.add_argument_group(title))
            group.add_argument(
                _option(name),
                nargs="?",
                const=_BARE,
                action="append",
                metavar=_metavar(field),
                help=_help(field),
                dest=name,
            )
        output = self._parser.add_argument_group("output")
        for name, text in {**flags, "help": "show this help and exit"}.items():
            output.add_argument(f"--{name}", action="store_true", help=text, dest=f"flag_{name}")
        output.add_argument("-h", action="store_true", help=argparse.SUPPRESS, dest="flag_help")

    def help(self) -> str:
        """The help page: options by group, each with its range and default."""
        # argparse shows each value as optional, which lets `read` find every missing one instead of the first.
        return re.sub(
            r"^(  --(?!pin|record|counterf|determ|distort|compile|overlap|best-batch(?!-))[\w-]+) \[(.+?)\]",
            r"\1 \2",
            self._parser.format_help(),
            flags=re.MULTILINE,
        )

    def names(self) -> list[str]:
        """Every option, as typed."""
        return [_option(name) for name in self._fields] + [f"--{flag}" for flag in self._flags]

    def read(self, argv: Sequence[str]) -> tuple[dict[str, Any], set[str], list[str]]:
        """Values by field, flags that were given, and problems: unknown options with the nearest, missing values."""
        parsed, unknown = self._parser.parse_known_args(list(argv))
        values: dict[str, Any] = {}
        problems = []
        for name, field in self._fields.items():
            given = getattr(parsed, name)
            if given is None:
                continue
            if _is_bool(field):
                given = ["true" if value == _BARE else value for value in given]
            if _BARE in given:
                problems.append(
                    f"{_option(name)}: needs a value (write {_option(name)}=VALUE for one that begins with a dash)"
                )
            elif _is_dict(field):
                values[name] = _pairs(_option(name), given, problems)
            else:
                values[name] = given[-1]
        if self._positional is not None and (texts := getattr(parsed, self._positional)):
            values[self._positional] = texts if self._several else texts[0]
            if len(texts) > 1 and not self._several:
                problems.append(f"{self._positional.upper()}: given {len(texts)}, allowed one")
        problems += [self._unknown(token) for token in unknown if token != "--"]
        flags = {name for name in (*self._flags, "help") if getattr(parsed, f"flag_{name}")}
        return values, flags, problems

    def _unknown(self, token: str) -> str:
        if not token.startswith("-"):
            return f"{token!r} is not an option; every value follows the name of its option"
        near = difflib.get_close_matches(token.partition("=")[0], self.names(), n=1, cutoff=0.5)
        return f"unknown option {token.partition('=')[0]!r}" + (f"; did you mean {near[0]}?" if near else "")


def _pairs(option: str, given: list[str], problems: list[str]) -> dict[str, Any]:
    """`K=V` texts as a dict; V is read as JSON, else kept as text."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            problems.append(f"{option}: given {text!r}, allowed NAME=VALUE")
            continue
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_list(model: type[BaseModel], name: str) -> bool:
    return any(typing.get_origin(kind) in (list, tuple) for kind in _types(model.model_fields[name]))


def _types(field: FieldInfo) -> tuple[Any, ...]:
    """The types a field allows, None left out."""
    kind = field.annotation
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return tuple(part for part in typing.get_args(kind) if part is not type(None))
    return (kind,)


def _is_bool(field: FieldInfo) -> bool:
    return bool in _types(field)


def _is_dict(field: FieldInfo) -> bool:
    return any(typing.get_origin(kind) is dict for kind in _types(field))


def _metavar(field: FieldInfo) -> str:
    (kind, *_) = _types(field)
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    if _is_dict(field):
        return "K=V"
    return {bool: "true/false", int: "N", float: "X"}.get(kind, "TEXT")


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    default = field.default
    if default is None or default in ({}, [], ()) or isinstance(default, bool):
        return text
    shown = ", ".join(map(str, default)) if isinstance(default, list | tuple) else default
    return f"{text} [{shown}]"
