"""The first tensor of a step that is not finite, on the rank where it arose, before ranks mix their gradients.

Outputs of a model's parts, and the gradients at them, are a rank's own under every strategy: a reduction spreads a bad
gradient of a parameter over all ranks, not one of an activation. Of each, one sum is taken: not finite when one of its
elements is not. The sums stay on the device and are read with the losses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn


class FiniteWatch:
    """Notes sums of what `parts` return in training, and of the gradients there, in the order in which they come up."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self._sums: list[tuple[str, torch.Tensor]] = []
        for name, part in parts.items():
            part.register_forward_hook(functools.partial(self._after, name))

    def take(self) -> list[tuple[str, torch.Tensor]]:
        """What was noted since the last call: what each is, and its sum, a scalar on the device."""
        taken, self._sums = self._sums, []
        return taken

    def _after(self, name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        for tensor in _tensors(output):
            self._note(f"the output of {name}", tensor.detach())
            if tensor.requires_grad:
                tensor.register_hook(functools.partial(self._note, f"the gradient at the output of {name}"))

    def _note(self, what: str, tensor: torch.Tensor) -> None:
        if tensor.is_floating_point() and tensor.numel():
            self._sums.append((what, tensor.sum(dtype=torch.float32)))


def parts_of(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """What is watched of `model`: its direct children and its `blocks`, by name."""
    watched = {id(block) for block in blocks} | {id(child) for child in model.children()}
    return {name: module for name, module in model.named_modules() if id(module) in watched and name}


def first_not_finite(noted: Sequence[tuple[str, float]]) -> str | None:
    """The first of what was noted whose sum is not finite."""
    return next((what for what, total in noted if not math.isfinite(total)), None)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
