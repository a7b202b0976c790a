"""Whether two runs trained the same thing: their losses and gradient norms, step by step.

Both are needed, and with plain SGD too: losses under AdamW hardly see gradients that are doubled or not reduced, as its
update does not depend on their scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

# Largest relative difference between two ways of computing the same steps: what the order of sums does to fp32, and
# what 8 bits of mantissa in compute do.
TOLERANCES = {"fp32": 1e-5, "tf32": 2e-2, "bf16": 2e-2, "bf16-params": 2e-2, "fp16": 2e-2}

# What the cause of a run begins with that left the tolerance.
PARITY = "loss parity"

Series = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Deviation:
    """The first step at which a series leaves the tolerance. None is a value that is missing or not finite."""

    series: str
    step: int
    found: float | None
    expected: float | None

    def __str__(self) -> str:
        return f"{self.series} of step {self.step} is {self.found}, expected {self.expected}"


def deviations(found: Series, expected: Series, *, tolerance: float) -> list[Deviation]:
    """Where each series of `expected` (`loss`, `grad_norm`) first differs by more than `tolerance`, relatively."""
    rows = []
    for name, values in expected.items():
        pairs = enumerate(zip_longest(found[name], values))
        first = next((Deviation(name, step, a, b) for step, (a, b) in pairs if not _near(a, b, tolerance)), None)
        rows += [first] if first else []
    return rows


def largest(found: Series, expected: Series) -> float:
    """The largest relative difference of two series that are near each other; 0 where nothing can be compared."""
    pairs = [pair for name in expected for pair in zip(found[name], expected[name], strict=False)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return max((abs(a - b) / max(abs(a), abs(b)) for a, b in known if a != b), default=0.0)


def _near(a: float | None, b: float | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=tolerance)
