"""What a scenario is: options of a run that have a fault in them, and the same options without it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUBJECT = Path(__file__).with_name("_subject.py")
NO_PREFIX: tuple[tuple[str, ...], ...] = ((),)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One side of a scenario. `options` are those of `scalelab run` by field name, with `model_option` as a dict.

    `around` is entered while it runs and yields what goes before the command on each host, one host as a rule: it
    starts and ends neighbours, limits and wires.
    """

    options: Mapping[str, Any]
    around: Callable[[], AbstractContextManager[Sequence[Sequence[str]]]] = field(
        default=lambda: contextlib.nullcontext(NO_PREFIX)
    )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A fault. `plant(strength, world_size)` has it in, `remove(strength, world_size)` does not, and is alike in all
    else; what they differ by is what removing the cause recovers. A seed draws the strength from `strengths`; of what
    there is only in whole numbers, `whole` makes one of it.

    `why_not` says why this machine cannot have the fault; None where it can.
    """

    name: str
    says: str
    label: str
    plant: Callable[[float, int], Planted]
    remove: Callable[[float, int], Planted] | None
    strengths: tuple[float, float]
    unit: str = "seconds"
    whole: Callable[[float], int] | None = None
    devices: tuple[str, ...] = ("cpu",)
    world_sizes: tuple[int, ...] = (2,)
    why_not: Callable[[], str | None] = lambda: None

    def strength(self, seed: int) -> float:
        """The strength under `seed`, as it is planted."""
        low, high = self.strengths
        drawn = low + (high - low) * random.Random(f"{self.name} {seed}").random()
        return drawn if self.whole is None else self.whole(drawn)

    def told(self, strength: float) -> str:
        """The strength with its unit, for a sentence."""
        return f"{strength:.3g} {self.unit}" if self.whole is None else f"{strength:,} {self.unit}"


def subject(**model_option: Any) -> dict[str, Any]:
    """Options of a run of the scenarios' own model."""
    return {"model": str(SUBJECT), "model_option": model_option}


@contextlib.contextmanager
def nothing() -> Iterator[Sequence[Sequence[str]]]:
    """Nothing around a run on one host."""
    yield NO_PREFIX
