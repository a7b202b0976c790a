"""`--fail-if slower:5%`: when a comparison ends with exit code 9. No torch.

A gate fails when the verdict is established (the interval of the effect leaves 0 out, or a count is larger) and the
effect itself is at least the threshold. So two sides that are alike fail it in at most 2.5 % of all comparisons; a true
effect as large as the threshold in about half, one twice as large in 80 % and more with the repeats that are asked for.
A difference that cannot be told never fails it; it is warned of, with the repeats that would tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

# What a gate is called: the effect it looks at, and the verdict that it fails on.
GATES = {"slower": (None, "slower"), "memory": ("peak_memory_bytes", "more"), "cost": (None, "dearer")}
_FORM = re.compile(r"(?P<name>[a-z]+):(?P<percent>[0-9]+(?:\.[0-9]+)?)%")
ALLOWED = f"{', '.join(f'{name}:N%' for name in GATES)}, several by commas, such as slower:5%,memory:10%"


@dataclass(frozen=True)
class Gate:
    name: str
    threshold: float


def parse_gates(text: str) -> list[Gate]:
    """The gates in `text`. Raises ValueError saying what is allowed."""
    found = []
    for part in text.split(","):
        match = _FORM.fullmatch(part.strip())
        if match is None or match["name"] not in GATES:
            raise ValueError(ALLOWED)
        found.append(Gate(match["name"], float(match["percent"]) / 100))
    if len({gate.name for gate in found}) < len(found):
        raise ValueError(f"each of them once: {ALLOWED}")
    return found


def judged(gate: Gate, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """How `gate` comes out: `failed`, `passed` or `cannot tell`. Raises ConfigError where what it looks at is not
    known: a gate that sees nothing would pass whatever comes."""
    if gate.name == "slower":
        row, word = comparison["verdict"], comparison["verdict"]["word"]
    else:
        row = _looked_at(gate, comparison)
        word = row["verdict"]
    outcome = "cannot tell" if word == "cannot tell" else "passed"
    if word == GATES[gate.name][1] and row["effect"] >= gate.threshold:
        outcome = "failed"
    return {
        "gate": gate.name,
        "threshold": gate.threshold,
        "effect": row["effect"],
        "ci95": row["ci95"],
        "verdict": word,
        "outcome": outcome,
    }


def _looked_at(gate: Gate, comparison: Mapping[str, Any]) -> Mapping[str, Any]:
    effects, reasons = comparison["effects"], comparison["reasons"]
    name = GATES[gate.name][0]
    if name is None:
        # Money where both sides know a price, else hours of the device.
        priced = effects.get("usd_per_million_samples")
        name = "usd_per_million_samples" if priced else "device_hours_per_million_samples"
    if effects[name] is None:
        raise ConfigError(
            f"--fail-if {gate.name}:{gate.threshold:.3g}: {name} is not known: {reasons[f'effects.{name}']}",
            hint="leave this gate out, or make runs that measure it",
        )
    return effects[name]
