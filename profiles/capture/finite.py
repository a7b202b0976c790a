"""The first tensor of a step that is not finite, on the rank where it arose, before ranks mix their gradients.

In backward one small parameter of each part of the model is watched: its gradient on this rank, before any reduction.
The gradient of a bias or a norm adds up that of all it touches, so it is not finite as soon as one element behind it is
not. In forward the parts' outputs are watched: all on CUDA, where that is queued behind the rest, small ones on CPU.
Of each tensor one sum is taken; the sums stay on the device and are read with the losses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

# A larger output would take more than some ten microseconds to add up on a CPU.
SMALL_ELEMENTS = 1 << 16


class FiniteWatch:
    """Notes sums of what `parts` return in training, and of gradients in them, in the order in which they come up.

    `compiled` parts are watched from outside: by the gradients at their outputs.
    """

    def __init__(self, parts: Mapping[str, nn.Module], *, compiled: bool = False) -> None:
        self._sums: list[tuple[str, torch.Tensor]] = []
        self._compiled = compiled
        self._watched: list[tuple[nn.Module, str, str, nn.Parameter]] = []
        for name, part in parts.items():
            part.register_forward_hook(functools.partial(self._after, name))
            if not compiled and (watched := _smallest(part)) is not None:
                owner, own_name, path = watched
                self._watched.append((owner, own_name, f"{name}.{path}", getattr(owner, own_name)))

    def sharded(self) -> None:
        """The model is under its strategy. One that put a shard in a parameter's place puts the whole there when the
        parameter's module runs: that is then watched."""
        for owner, own_name, name, parameter in self._watched:
            if owner._parameters.get(own_name) is parameter:
                self._watch(parameter, name)
            else:
                owner.register_forward_pre_hook(functools.partial(self._before, own_name, name), prepend=False)

    def take(self) -> list[tuple[str, torch.Tensor]]:
        """What was noted since the last call: what each is, and its sum, a scalar on the device."""
        taken, self._sums = self._sums, []
        return taken

    def _before(self, own_name: str, name: str, owner: nn.Module, inputs: Any) -> None:
        parameter = owner._parameters[own_name]
        if parameter is not None and getattr(parameter, "_finite_watch", None) is not self and parameter.requires_grad:
            parameter._finite_watch = self  # pyright: ignore[reportAttributeAccessIssue]
            self._watch(parameter, name)

    def _watch(self, parameter: nn.Parameter, name: str) -> None:
        parameter.register_hook(functools.partial(self._note, f"the gradient of {name}"))

    def _after(self, name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        for tensor in _tensors(output):
            if tensor.is_cuda or tensor.numel() <= SMALL_ELEMENTS:
                self._note(f"the output of {name}", tensor.detach())
            if self._compiled and tensor.requires_grad:
                tensor.register_hook(functools.partial(self._note, f"the gradient at the output of {name}"))

    def _note(self, what: str, tensor: torch.Tensor) -> None:
        if tensor.is_floating_point() and tensor.numel():
            self._sums.append((what, tensor.sum(dtype=torch.float32)))


def parts_of(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """What is watched of `model`, by name: its `blocks`, and its direct children that hold none of them."""
    inside = {id(block) for block in blocks}
    for child in model.children():
        if not any(id(module) in inside for module in child.modules()):
            inside.add(id(child))
    return {name: module for name, module in model.named_modules() if id(module) in inside and name}


def first_not_finite(noted: Sequence[tuple[str, float]]) -> str | None:
    """The first of what was noted whose sum is not finite."""
    return next((what for what, total in noted if not math.isfinite(total)), None)


def _smallest(part: nn.Module) -> tuple[nn.Module, str, str] | None:
    """The module that holds the smallest trainable parameter of `part`, its name there, and its path in `part`."""
    found = [
        (parameter.numel(), index, module, name, f"{path}.{name}" if path else name)
        for index, (path, module) in enumerate(part.named_modules())
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    if not found:
        return None
    _, _, module, name, path = min(found, key=lambda row: row[:2])
    return module, name, path


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
