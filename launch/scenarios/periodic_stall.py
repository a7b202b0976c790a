"""A checkpoint every second step."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(save_every: int, layers: int) -> Planted:
    model = subject(tokens=16, width=256, inner=2048, layers=layers)
    return Planted(options={**model, "micro_batch": 8, "save_every": save_every})


scenario = Scenario(
    name="periodic_stall",
    says="a checkpoint is written every second step",
    label="periodic_stall",
    plant=lambda strength, world_size: _with(2, int(strength)),
    remove=lambda strength, world_size: _with(0, int(strength)),
    strengths=(3, 6),
    whole=int,
    unit="blocks of 1 M parameters",
)
