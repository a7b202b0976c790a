"""The first tensor of a step that is not finite, on the rank where it arose, before ranks mix their gradients.

In backward one small parameter of each part of the model is watched: its gradient on this rank, before any reduction.
The gradient of a bias or a norm adds up that of all it touches, so it is not finite as soon as one element behind it is
not. In forward the parts' outputs are watched: all on CUDA, where that is queued behind the rest, small ones on CPU.
On CUDA one sum is taken of each tensor, which stays on the device and is read with the losses. On CPU the tensors
themselves are kept to the end of the step and looked at all at once, the outputs only if a loss is not finite: to add
each of them up where it occurs was measured to cost 13 us.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# A larger output is not kept on a CPU.
SMALL_ELEMENTS = 1 << 16


class Noted(NamedTuple):
    """A tensor that was met, or on CUDA its sum."""

    what: str
    is_gradient: bool
    tensor: torch.Tensor


class FiniteWatch:
    """Notes what `parts` return in training, and gradients in them, in the order in which they come up.

    `compiled` parts are watched from outside: by the gradients at their outputs.
    """

    def __init__(self, parts: Mapping[str, nn.Module], *, compiled: bool = False) -> None:
        self._noted: list[Noted] = []
        self._parts = dict(parts)
        self._hooks: list[RemovableHandle] = []
        self._generation = 0
        self._compiled = compiled
        self._watched: list[tuple[nn.Module, str, str, nn.Parameter]] = []
        for name, part in parts.items():
            if not compiled and (watched := _smallest(part)) is not None:
                owner, own_name, path = watched
                self._watched.append((owner, own_name, f"{name}.{path}", getattr(owner, own_name)))

    def sharded(self) -> None:
        """The model is under its strategy: watch from now on. A strategy that put a shard in a parameter's place puts
        the whole there when the parameter's module runs: that is then watched."""
        for name, part in self._parts.items():
            self._hooks.append(part.register_forward_hook(functools.partial(self._after, name)))
        for owner, own_name, name, parameter in self._watched:
            if owner._parameters.get(own_name) is parameter:
                self._watch(parameter, name)
            else:
                before = functools.partial(self._before, own_name, name)
                self._hooks.append(owner.register_forward_pre_hook(before, prepend=False))

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Within, nothing is watched, and no hook is left."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._generation += 1
        try:
            yield
        finally:
            self.sharded()

    def take(self) -> list[Noted]:
        """What was noted since the last call."""
        taken, self._noted = self._noted, []
        return taken

    def _before(self, own_name: str, name: str, owner: nn.Module, inputs: Any) -> None:
        parameter = owner._parameters[own_name]
        mine = (self, self._generation)
        if parameter is not None and getattr(parameter, "_finite_watch", None) != mine and parameter.requires_grad:
            parameter._finite_watch = mine  # pyright: ignore[reportAttributeAccessIssue]
            self._watch(parameter, name)

    def _watch(self, parameter: nn.Parameter, name: str) -> None:
        self._hooks.append(parameter.register_hook(functools.partial(self._note, f"the gradient of {name}", True)))

    def _after(self, name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        for tensor in _tensors(output):
            if tensor.is_cuda or tensor.numel() <= SMALL_ELEMENTS:
                self._note(f"the output of {name}", False, tensor.detach())
            if self._compiled and tensor.requires_grad:
                tensor.register_hook(functools.partial(self._note, f"the gradient at the output of {name}", True))

    def _note(self, what: str, is_gradient: bool, tensor: torch.Tensor) -> None:
        if tensor.is_floating_point() and tensor.numel():
            kept = tensor.sum(dtype=torch.float32) if tensor.is_cuda else tensor
            self._noted.append(Noted(what, is_gradient, kept))


def parts_of(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """What is watched of `model`, by name: its `blocks`, and its direct children that hold none of them."""
    inside = {id(block) for block in blocks}
    for child in model.children():
        if not any(id(module) in inside for module in child.modules()):
            inside.add(id(child))
    return {name: module for name, module in model.named_modules() if id(module) in inside and name}


def first_not_finite(noted: Sequence[Noted]) -> str | None:
    """What comes first of `noted` that is not finite."""
    return next((each.what for each in noted if not bool(each.tensor.isfinite().all())), None)


def all_finite(noted: Sequence[Noted]) -> bool:
    """Whether all of `noted` is finite; one look at many tensors."""
    if not noted:
        return True
    largest = torch._foreach_norm([each.tensor.float() for each in noted], ord=math.inf)  # pyright: ignore[reportPrivateImportUsage]
    return bool(torch.stack(largest).isfinite().all())


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
