"""What an operator costs: by the clock that is given, and with no trace in what the training draws from."""

from __future__ import annotations

import torch
from scalelab.profiles.capture.operators import REPEATS, operator_seconds


def test_the_median_run_by_its_operators_and_the_generator_as_it_was() -> None:
    """A run that takes long does not count; the same draws come after it as would have without."""
    ticks = iter(
        [each for number in range(REPEATS) for each in (10.0 * number, 10.0 * number + (5 if number == 3 else 1))]
    )
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = operator_seconds(torch.device("cpu"), clock=lambda: next(ticks))
    assert torch.equal(torch.get_rng_state(), state)
    count = round(1 / found)
    assert count > 200
    assert abs(found * count - 1) < 1e-9
