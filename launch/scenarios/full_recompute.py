"""Every activation is computed again, with room for all of them."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(tokens: float, how: str) -> Planted:
    # Square layers: little memory for the work, as memory that is kept costs time too where it is new in every step.
    model = subject(width=256, inner=256, layers=12, tokens=round(tokens))
    return Planted(options={**model, "micro_batch": 8, "checkpointing": how})


scenario = Scenario(
    name="full_recompute",
    says="every activation is computed again in backward, with memory to spare",
    label="recompute",
    plant=lambda strength, world_size: _with(strength, "full"),
    remove=lambda strength, world_size: _with(strength, "none"),
    strengths=(64, 128),
    whole=round,
    unit="tokens in a row",
    world_sizes=(1, 2),
)
