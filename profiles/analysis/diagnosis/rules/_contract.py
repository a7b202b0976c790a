"""What a rule is: `rule = Rule(...)` in a file of its label's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..facts import Facts
from ..finding import Answer


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`find` is a pure function. A run on another device, or of fewer ranks, is not asked. Seconds that this cause
    and one of those it `explains` both take are counted here."""

    label: str
    devices: tuple[str, ...]
    find: Callable[[Facts], Answer]
    least_ranks: int = 1
    explains: tuple[str, ...] = ()

    def can_occur(self, facts: Facts) -> bool:
        return facts.device in self.devices and facts.world_size >= self.least_ranks
