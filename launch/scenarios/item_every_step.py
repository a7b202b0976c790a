"""The code asks for a value of the device after every block."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(layers: float, item: bool) -> Planted:
    model = subject(width=512, inner=1024, tokens=128, layers=round(layers), item=item)
    return Planted(options={**model, "micro_batch": 16, "profile_steps": 5})


scenario = Scenario(
    name="item_every_step",
    says="the host waits for the device after every block",
    label="host_sync",
    plant=lambda strength, world_size: _with(strength, True),
    remove=lambda strength, world_size: _with(strength, False),
    strengths=(12, 24),
    whole=round,
    unit="layers",
    devices=("cuda",),
    world_sizes=(1, 2),
)
