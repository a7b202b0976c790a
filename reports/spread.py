"""An interval between runs as it is shown: in words where its runs are too few to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..profiles.analysis.telling import TOO_FEW


def spread(row: Mapping[str, Any], name: str, show: Callable[[Sequence[float]], str]) -> str:
    """Of the estimate `name` of `row`, which has `reasons`; empty for one run."""
    value = row[name]
    if value is None:
        return ""
    if value["ci95"] is not None:
        return show(value["ci95"])
    why = row["reasons"].get(f"{name}.ci95", "")
    return TOO_FEW if why.startswith(TOO_FEW) else ""
