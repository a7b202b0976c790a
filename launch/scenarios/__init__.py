"""Built-in faults, one file each: real causes of low utilisation, to see what a diagnosis says of them.

Adding a scenario is adding a file with `scenario = Scenario(...)`; names that begin with `_` are no scenarios.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from ._contract import Scenario


@functools.cache
def scenarios() -> dict[str, Scenario]:
    """Every scenario on disk, by name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    return {name: importlib.import_module(f".{name}", __package__).scenario for name in names}
