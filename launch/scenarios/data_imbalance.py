"""Rank 1 gets longer rows than the others."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject

# Most of a token's time is a sleep, as if each rank had a device of its own: on shared cores a rank runs faster while
# its peer waits, and evening out would take that gain away.
WAIT = 4e-5


def _with(times: float, evened: bool) -> Planted:
    model = subject(tokens=96, uneven=times, evened=evened, per_token=WAIT)
    return Planted(options={**model, "micro_batch": 8})


scenario = Scenario(
    name="data_imbalance",
    says="rank 1 gets longer rows than the others, and every batch has a length of its own",
    label="data_imbalance",
    plant=lambda strength, world_size: _with(strength, False),
    remove=lambda strength, world_size: _with(strength, True),
    strengths=(3.0, 5.0),
    unit="times the tokens",
)
