"""A loss or gradient that is not finite stops all ranks, and names the rank and the tensor that it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from scalelab.launch import strategies

from tests.support.supervised import Timed

# Three parts in a row; in the fourth step of rank 1 the middle one returns something bad, or sends it back.
MODEL = """
    import os
    import torch
    from torch import nn
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(context, x): return x.clone()
        @staticmethod
        def backward(context, grad): return grad * BAD
    class Middle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.calls = 0
        def forward(self, x):
            self.calls += 1
            x = self.layer(x)
            if self.calls == 4 and os.environ["RANK"] == "1":
                x = FAULT
            return x
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(3, 4), Middle(), nn.Linear(4, 4)
        def forward(self, batch): return self.last(self.middle(self.first(batch["x"]))).square().mean()
    def build_model(): return Net()
    def example_batch(size): return {{"x": torch.randn(size, 3)}}
"""
STRATEGIES = sorted(set(strategies.names()) - {"single"})


@pytest.mark.fault(41)
@pytest.mark.parametrize("bad", ["nan", pytest.param("inf", marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_is_named_with_its_rank(
    tmp_path: Path, timed: Timed, strategy: str, bad: str, where: str
) -> None:
    """Exit 8, the rank on which it arose, in the step itself or the next, the tensor; the records are valid JSON."""
    number = f"float('{bad}')"
    fault = f"x * {number}" if where == "loss" else "Bad.apply(x)"
    model = MODEL.replace("FAULT", fault).replace("BAD", number)
    found = timed(tmp_path, model=model, strategy=strategy)
    assert (found.status["exit_code"], found.status["culprit"]["rank"]) == (8, 1), found.status
    assert 3 <= found.status["culprit"]["step"] <= 4
    tensor = "the output of middle" if where == "loss" else "the gradient of middle.layer.bias"
    assert f"first {tensor}" in found.status["cause"], found.status
    assert all(found.folder.records(rank)[1] == 0 for rank in (0, 1))
    assert found.left == []
