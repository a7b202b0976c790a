"""How many operators a step calls, and what one costs the host before it computes anything."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

LINKS = 100
REPEATS = 7


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


def operator_seconds(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """What an operator costs the host: the fastest of some runs of a chain of products of eight numbers, forward and
    backward, by the operators in it. On CUDA the time to launch them."""
    x = torch.ones(8, device=device, requires_grad=True)

    def chain() -> None:
        y = x
        for _ in range(LINKS):
            y = y * x
        torch.autograd.grad(y.sum(), x)

    with _Counting() as counting:
        chain()
    took = []
    for _ in range(REPEATS):
        begin = clock()
        chain()
        took.append(clock() - begin)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return min(took) / counting.count
