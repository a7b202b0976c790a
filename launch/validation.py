"""What users are told about values: every problem at once, each with the option, the value, what is allowed and,
for a name, the nearest one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)
# Names beside the nearest one that a reader still looks through.
MOST_LISTED = 20


def validated(model: type[Model], values: Mapping[str, Any]) -> tuple[Model, list[str]]:
    """A `model` of the values that are in range, the others left at their defaults, and what is wrong with those."""
    try:
        return model(**values), []
    except ValidationError as error:
        details = error.errors()
    bad = {str(detail["loc"][0]) for detail in details}
    problems = [describe(str(detail["loc"][0]), detail.get("input"), detail) for detail in details]
    return model(**{name: value for name, value in values.items() if name not in bad}), problems


def unknown(what: str, given: str, allowed: Iterable[str]) -> str:
    """The message for a name that is none of `allowed`, with the nearest one offered, alone where they are many."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    if near and len(allowed) > MOST_LISTED:
        return f"{what}: given {given!r}, did you mean {near[0]}? It is the nearest of {len(allowed)}"
    offer = f", did you mean {near[0]}?" if near else ","
    return f"{what}: given {given!r}{offer} allowed {', '.join(allowed)}"


def describe(field: str, value: Any, detail: Mapping[str, Any]) -> str:
    """One of pydantic's complaints in our form: the option, the value given, what is allowed."""
    option = "--" + field.replace("_", "-")
    context = detail.get("ctx") or {}
    kind = detail["type"]
    if kind == "literal_error":
        choices = [choice.strip(" '") for choice in re.split(r",| or ", context["expected"])]
        return unknown(option, str(value), choices)
    signs = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = [f"{word} {context[sign]}" for sign, word in signs.items() if sign in context]
    if kind == "value_error":
        allowed = str(context["error"])
    elif limits:
        allowed = "a number " + " and ".join(limits)
    elif kind.startswith("int"):
        allowed = "a whole number"
    elif kind.startswith(("float", "finite")):
        allowed = "a finite number"
    elif kind.startswith("bool"):
        allowed = "true or false"
    else:
        allowed = str(detail["msg"])
    return f"{option}: given {value!r}, allowed {allowed}"
