"""Rank 1 gets longer rows than the others."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(times: float) -> Planted:
    return Planted(options={**subject(tokens=256, uneven=times), "micro_batch": 8})


def _even(times: float) -> Planted:
    """As many tokens over all ranks, alike on each."""
    return Planted(options={**subject(tokens=round(256 * (1 + times) / 2)), "micro_batch": 8})


scenario = Scenario(
    name="data_imbalance",
    says="rank 1 gets longer rows than the others, and every batch has a length of its own",
    label="data_imbalance",
    plant=lambda strength, world_size: _with(strength),
    remove=lambda strength, world_size: _even(strength),
    strengths=(3.0, 5.0),
    unit="times the tokens",
)
