"""Large images are decoded whole, where a small one is wanted."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(images: int) -> Planted:
    return Planted(options={**subject(tokens=256, images=images, decode="full"), "micro_batch": 4})


scenario = Scenario(
    name="slow_jpeg_decode",
    says="images of 1600x900 are decoded whole and then made small",
    label="input_bound",
    plant=lambda strength, world_size: _with(max(1, round(strength))),
    remove=lambda strength, world_size: _with(0),
    strengths=(2, 6),
    whole=round,
    unit="images a sample",
    world_sizes=(1, 2),
)
