"""What one host knows at the end of a run: sent to the host that decides, or concluded from at once on a single one.

Monotonic clocks of two hosts have nothing to do with each other. So times travel as ages: seconds before sending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .sighting import Sighting

Collectives = Mapping[int, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One thing that went wrong on one rank (None: on no single one). `at` is on the reader's monotonic clock."""

    rank: int | None
    host: str
    at: float
    phase: str | None
    step: int | None
    exit_code: int
    cause: str
    hint: str = ""
    consequence: bool = False
    memory: dict[str, Any] | None = None
    """Of a rank that ran out of memory, who held what."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The ranks of one host as last seen, and what was learnt of any trouble."""

    host: str
    ranks: Sequence[Sighting]
    evidence: Sequence[Evidence] = ()
    stuck: Sequence[Sighting] = ()
    """Ranks that made no progress, as they were when that was noticed."""
    collectives: Collectives | None = None
    """By rank, what its flight recorder listed; None where nobody asked."""
    signal: int | None = None
    """The signal with which this host's user or scheduler ended the run, when ranks could not end by themselves."""
    overran: bool = False
    """Whether the ranks were asked to end by themselves, and did not within their time."""
    noticed_at: float | None = None
    """When that was, on the reader's monotonic clock."""
    silence_seconds: float = 0.0
    launcher_code: int | None = None

    def to_json(self, now: float) -> dict[str, Any]:
        """As plain values, with ages in place of times."""
        plain = asdict(replace(self, collectives=None))
        plain["collectives"] = None if self.collectives is None else list(self.collectives.items())
        plain["noticed_at"] = None if self.noticed_at is None else now - self.noticed_at
        plain["ranks"] = [_aged(seen, now) for seen in self.ranks]
        plain["stuck"] = [_aged(seen, now) for seen in self.stuck]
        plain["evidence"] = [{**asdict(item), "at": now - item.at} for item in self.evidence]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], now: float) -> Report:
        """The inverse, on the clock of the reader. Raises TypeError, KeyError or ValueError for what is no report."""
        lists = plain["collectives"]
        return cls(
            **{
                **plain,
                "collectives": None if lists is None else {int(rank): entries for rank, entries in lists},
                "noticed_at": None if plain["noticed_at"] is None else now - plain["noticed_at"],
                "ranks": [_timed(seen, now) for seen in plain["ranks"]],
                "stuck": [_timed(seen, now) for seen in plain["stuck"]],
                "evidence": [Evidence(**{**item, "at": now - item["at"]}) for item in plain["evidence"]],
            }
        )


_TIMES = ("since", "beat_at", "ended_at")


def _aged(seen: Sighting, now: float) -> dict[str, Any]:
    plain = {**asdict(seen), "news": None}
    return {**plain, **{name: None if plain[name] is None else now - plain[name] for name in _TIMES}}


def _timed(plain: Mapping[str, Any], now: float) -> Sighting:
    return Sighting(**{**plain, **{name: None if plain[name] is None else now - plain[name] for name in _TIMES}})
