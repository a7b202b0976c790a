"""What an operator costs: by the clock that is given, and with no trace in what the training draws from."""

from __future__ import annotations

import torch
from scalelab.profiles.capture.operators import LAYERS, REPEATS, operator_seconds


def test_the_median_run_by_its_operators_and_the_generator_as_it_was() -> None:
    """A pass that takes long does not count; the same draws come after it as would have without. An operator over a
    list of tensors counts for each."""
    times = [
        each for number in range(3 * REPEATS) for each in (10.0 * number, 10.0 * number + (5 if number < 3 else 1))
    ]
    ticks = iter(times)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = operator_seconds(
        torch.device("cpu"), lambda small: torch.optim.SGD(small, lr=0.1, fused=True), clock=lambda: next(ticks)
    )
    assert torch.equal(torch.get_rng_state(), state)
    counts = {phase: round(1 / each) for phase, each in found.items()}
    assert counts["forward"] > 100
    assert counts["backward"] > 100
    assert counts["optimizer"] == 6 * LAYERS + 4
    assert all(abs(found[phase] * count - 1) < 1e-9 for phase, count in counts.items())
