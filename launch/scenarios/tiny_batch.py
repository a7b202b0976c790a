"""Many layers, and next to nothing to compute in each."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(layers: int, inner: int) -> Planted:
    return Planted(options={**subject(width=16, inner=inner, tokens=4, layers=layers), "micro_batch": 1})


scenario = Scenario(
    name="tiny_batch",
    says="a sample at a time through many thin layers",
    label="launch_bound",
    plant=lambda strength, world_size: _with(round(strength), 16),
    remove=lambda strength, world_size: _with(1, 16 * round(strength)),
    strengths=(40, 90),
    whole=round,
    unit="layers",
    world_sizes=(1, 2),
)
