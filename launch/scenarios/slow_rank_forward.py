"""Rank 1 is slow in forward."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(seconds: float) -> Planted:
    return Planted(options={**subject(tokens=256, slow_forward=seconds), "micro_batch": 8})


scenario = Scenario(
    name="slow_rank_forward",
    says="rank 1 waits in every forward, as behind a lock or a throttled device",
    label="straggler_rank",
    plant=lambda strength, world_size: _with(strength),
    remove=lambda strength, world_size: _with(0.0),
    strengths=(0.05, 0.2),
    unit="seconds a step",
)
