"""Many layers, and next to nothing to compute in each."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(layers: float, size: int) -> Planted:
    model = subject(width=16, inner=16, tokens=4, layers=round(layers))
    return Planted(options={**model, "micro_batch": size})


scenario = Scenario(
    name="tiny_batch",
    says="a sample at a time through many thin layers",
    label="launch_bound",
    plant=lambda strength, world_size: _with(strength, 1),
    remove=lambda strength, world_size: _with(strength, 4),
    strengths=(40, 90),
    unit="layers",
    world_sizes=(1, 2),
)
