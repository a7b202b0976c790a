"""What a rule is: `rule = Rule(...)` in a file of its label's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..facts import Facts
from ..finding import Answer


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`find` is a pure function. A run on another device, or of fewer ranks, is not asked.

    Of seconds that two causes take, this one's are counted first where it comes `before` the other; where it `explains`
    the other, the other has none of them: a rank that is late because of its data is not late for a second reason.
    """

    label: str
    devices: tuple[str, ...]
    find: Callable[[Facts], Answer]
    least_ranks: int = 1
    explains: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def can_occur(self, facts: Facts) -> bool:
        return facts.device in self.devices and facts.world_size >= self.least_ranks


def larger_batch(config: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """`options` that make the batch larger, with the learning rate adjusted: by the run's own scaling where it has one,
    else by the root (Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks")."""
    if config.get("lr_scaling", "none") == "none" and config.get("global_batch"):
        return {**options, "lr_scaling": "sqrt", "base_batch": config["global_batch"]}
    return options
