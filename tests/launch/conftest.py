"""Shared by tests of jobs under their own loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import scalelab
import torch
from scalelab.launch.attach import Probe
from torch import nn


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[Probe, nn.Module, torch.optim.Optimizer]]:
    """A probe on one rank, whose first step is warm-up."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = scalelab.Probe.attach(model, optimizer, out=tmp_path, warmup=1)
    yield probe, model, optimizer
    probe.close()
