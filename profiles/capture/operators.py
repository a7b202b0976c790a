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

from .storages import FEEDING

LAYERS, WIDTH = 20, 8
REPEATS = 15
# Operators that pass over a list of tensors, one after the other.
LISTED = ("aten._foreach", "aten._fused")


class OperatorCount:
    """Counts operators by `phase`, of one step at a time, and passes those of the model's own work on to `then`: what a
    loader computes lies on the host."""

    def __init__(self, then: Callable[[Any, Any, Any, Any], object]) -> None:
        self.calls: Counter[str] = Counter()
        self.phase: str | None = None
        self._then = then

    def begin(self) -> None:
        """A step begins: what was counted is forgotten."""
        self.calls.clear()

    def heard(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operator ran, on the calling thread."""
        self.calls[self.phase or ""] += calls_of(func, args)
        if self.phase not in FEEDING:
            self._then(func, args, kwargs, result)


def calls_of(func: Any, args: Any) -> int:
    """1; of an operator over a list of tensors, as optimizers have them, one for each."""
    if args and isinstance(args[0], list | tuple) and str(func).startswith(LISTED):
        return len(args[0])
    return 1


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += calls_of(func, args)
        return func(*args, **(kwargs or {}))


class _Small(nn.Module):
    """Layers as models have them, with next to nothing to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


def operator_seconds(
    device: torch.device,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """What an operator costs the host, by phase: the median over some passes of small layers, by the operators in them.
    On CUDA the time to launch them."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # the global generator is the training's
        layers = nn.Sequential(*(_Small() for _ in range(LAYERS)))
    layers.to(device)
    x = torch.ones(1, 2, WIDTH, device=device)
    optimizer = make_optimizer(list(layers.parameters()))
    losses: list[torch.Tensor] = []
    passes: dict[str, Callable[[], object]] = {
        "forward": lambda: losses.append(layers(x).sum()),
        "backward": lambda: losses.pop().backward(),
        "optimizer": lambda: (optimizer.step(), optimizer.zero_grad()),
    }
    for act in passes.values():
        act()
    calls, took = {}, {phase: [] for phase in passes}
    for phase, act in passes.items():
        with _Counting() as counting:
            act()
        calls[phase] = counting.count
    for _ in range(REPEATS):
        for phase, act in passes.items():
            begin = clock()
            act()
            took[phase].append(clock() - begin)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {phase: statistics.median(took[phase]) / calls[phase] for phase in passes}
