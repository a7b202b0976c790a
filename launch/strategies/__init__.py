"""The strategies, one file each: a file here is a strategy, its name is the file's."""

from __future__ import annotations

import importlib
import pkgutil

from ._contract import Strategy


def names() -> list[str]:
    """Every strategy on disk, without importing any."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> Strategy:
    """The strategy of that name, as the object `strategy` of its file. Imports no torch."""
    return importlib.import_module(f".{name}", __name__).strategy
