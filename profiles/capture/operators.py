"""How many operators a step calls, and what one costs the host before it computes anything."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS, WIDTH = 20, 8
REPEATS = 15


class OperatorCount:
    """Counts operators by `phase`, of one step at a time, and passes each on to `then`."""

    def __init__(self, then: Callable[[Any, Any, Any, Any], object]) -> None:
        self.calls: Counter[str] = Counter()
        self.phase: str | None = None
        self._then = then

    def begin(self) -> None:
        """A step begins: what was counted is forgotten."""
        self.calls.clear()

    def heard(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operator ran, on the calling thread."""
        self.calls[self.phase or ""] += 1
        self._then(func, args, kwargs, result)


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Small(nn.Module):
    """Layers as models have them, with next to nothing to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


def operator_seconds(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """What an operator costs the host: the median over some forward and backward passes of small layers, by the
    operators in them. On CUDA the time to launch them."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # the global generator is the training's
        layers = nn.Sequential(*(_Small() for _ in range(LAYERS)))
    layers.to(device)
    x = torch.ones(1, 2, WIDTH, device=device)

    def run() -> None:
        layers(x).sum().backward()

    run()
    with _Counting() as counting:
        run()
    took = []
    for _ in range(REPEATS):
        begin = clock()
        run()
        took.append(clock() - begin)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return statistics.median(took) / counting.count
