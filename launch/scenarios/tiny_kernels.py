"""Many layers, and kernels that are over before the next is launched."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(layers: float, size: int) -> Planted:
    model = subject(width=64, inner=64, tokens=8, layers=round(layers))
    return Planted(options={**model, "micro_batch": size, "profile_steps": 5})


scenario = Scenario(
    name="tiny_kernels",
    says="a sample at a time through many thin layers, on a GPU",
    label="launch_bound",
    plant=lambda strength, world_size: _with(strength, 1),
    remove=lambda strength, world_size: _with(strength, 64),
    strengths=(40, 90),
    whole=round,
    unit="layers",
    devices=("cuda",),
    world_sizes=(1, 2),
)
