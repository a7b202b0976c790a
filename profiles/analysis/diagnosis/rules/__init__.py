"""Diagnosis rules, one file a label. Adding a rule is adding a file; names that begin with `_` are no rules."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from ._contract import Rule


@functools.cache
def rules() -> dict[str, Rule]:
    """Every rule on disk, by label: the more particular before what it explains."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    found = {name: importlib.import_module(f".{name}", __package__).rule for name in names}
    ordered: dict[str, Rule] = {}
    while len(ordered) < len(found):
        ready = [
            name
            for name in found
            if name not in ordered
            and not any(name in (*rule.explains, *rule.before) for other, rule in found.items() if other not in ordered)
        ]
        assert ready, "rules explain each other in a circle"
        ordered |= {name: found[name] for name in ready}
    return ordered
