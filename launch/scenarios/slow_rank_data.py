"""The loader of rank 1 is slow."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(seconds: float) -> Planted:
    return Planted(options={**subject(tokens=256, slow_data=seconds, slow_data_rank=1), "micro_batch": 8})


scenario = Scenario(
    name="slow_rank_data",
    says="the loader of rank 1 alone waits before each batch",
    label="straggler_rank",
    plant=lambda strength, world_size: _with(strength),
    remove=lambda strength, world_size: _with(0.0),
    strengths=(0.05, 0.2),
    unit="seconds a step",
)
