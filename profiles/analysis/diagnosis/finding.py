"""What a rule may answer: a finding, or that it cannot tell and which signal it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COMMUNICATION = "comm_exposed"
BETWEEN = "between_steps"
"""Where the time of a cause may lie: a phase by its name, time blocked on communication, or events between steps."""
Removed = Mapping[str, np.ndarray]
"""Seconds by phase, each (ranks, steps)."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A sentence that carries its numbers, and the same numbers for programs, in SI units."""

    says: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """What to do. `options` of `scalelab run` do it, by field name; empty where the user's code or machine must
    change."""

    says: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """Seconds a step that removing a cause saves, their 95 % interval (None where it is not known), and how both were
    obtained: `by_tail`, from steps without the cause."""

    seconds: float
    ci95: tuple[float, float] | None
    method: str
    by_tail: bool = False


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A cause. `removed` holds where its seconds lie, by phase, each (ranks, steps): two causes that take the same
    seconds are counted once: of what is also another's, `alone` is what was measured, and `counted_under` has whose.
    `beyond`: seconds that the tail saved besides those of `removed`, which may be another cause's as well. `headroom`
    None: it is no matter of time, or not known (`why_no_headroom`); then it is a `verdict` or told beside one."""

    label: str
    evidence: tuple[Evidence, ...]
    remedy: Remedy
    headroom: Headroom | None
    removed: Removed = field(default_factory=dict)
    why_no_headroom: str = ""
    verdict: bool = True
    alone: Headroom | None = None
    counted_under: tuple[str, ...] = ()
    beyond: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CannotTell:
    """The signal that a rule lacks, and what to run to have it. Where `matters`, a run cannot be called healthy
    without."""

    label: str
    lacks: str
    rerun: str
    matters: bool = True


Answer = Finding | CannotTell | None
