"""Large images are decoded whole, where a small one is wanted."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(images: float, decode: str) -> Planted:
    model = subject(tokens=256, images=max(1, round(images)), decode=decode)
    return Planted(options={**model, "micro_batch": 4})


scenario = Scenario(
    name="slow_jpeg_decode",
    says="images of 1600x900 are decoded whole and then made small",
    label="input_bound",
    plant=lambda strength, world_size: _with(strength, "full"),
    remove=lambda strength, world_size: _with(strength, "scaled"),
    strengths=(2, 6),
    unit="images a sample",
    world_sizes=(1, 2),
)
