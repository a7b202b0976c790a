"""The first tensor of a step that is not finite, on the rank where it arose, before ranks mix their gradients.

In backward one small parameter of each part of the model is watched: its gradient on this rank, before any reduction.
The gradient of a bias or a norm adds up that of all it touches, so it is not finite as soon as one element behind it is
not. In forward the parts' outputs are watched: all on CUDA, where that is queued behind the rest, small ones on CPU.
On CUDA one sum is taken of each tensor, which stays on the device and is read with the losses. On CPU gradients are
looked at after each backward, all in one, and outputs are kept until the loss is known.

Between large operations the caches are cold, and a line of Python costs 1 us on a CPU. Hooks of gradients are therefore
functions of C alone. Outputs are seen in the place of a part's own `forward`: for a module that has a hook torch goes
through 30 lines more, which on eight parts cost a step of 8 ms 300 us. No tensor is kept from one step to the next:
small ones between large ones break up the allocator's heap, which was measured to cost a step of 15 ms up to 10 %.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# On a CPU a larger output is not kept, and of a larger gradient the sum is.
SMALL_ELEMENTS = 1 << 16
SMALL_GRADIENT_ELEMENTS = 1 << 10

# The name of a tensor that was met, and the tensor or its sum.
Noted = tuple[str, torch.Tensor]


class FiniteWatch:
    """Notes what `parts` return in training, and gradients in them.

    `compiled` parts are watched from outside: by the gradients at their outputs.
    """

    def __init__(self, parts: Mapping[str, nn.Module], *, compiled: bool = False) -> None:
        # By the part's name.
        self._outputs: list[Noted] = []
        self._gradients: dict[str, torch.Tensor] = {}
        self._earlier_gradients: list[Noted] = []
        self._parts = dict(parts)
        self._places: list[_Output] = []
        self._on_cuda = False
        self._hooks: list[RemovableHandle] = []
        self._generation = 0
        self._compiled = compiled
        self._watched: list[tuple[nn.Module, str, str, nn.Parameter]] = []
        for name, part in parts.items():
            if not compiled and (watched := _smallest(part)) is not None:
                owner, own_name, path = watched
                self._watched.append((owner, own_name, f"{name}.{path}", getattr(owner, own_name)))
        # Asked now, while a strategy has put no empty shard in a parameter's place.
        self._is_small = {
            name: parameter.dim() == 1 and parameter.numel() <= SMALL_GRADIENT_ELEMENTS
            for *_, name, parameter in self._watched
        }
        # Backward comes to the parts from the last to the first.
        self._watched.reverse()
        self._last: list[torch.Tensor | None] = [None] * len(self._watched)

    def sharded(self) -> None:
        """The model is under its strategy: watch from now on. A strategy that put a shard in a parameter's place puts
        the whole there when the parameter's module runs: that is then watched."""
        if not self._places:
            self._on_cuda = any(each.is_cuda for part in self._parts.values() for each in part.parameters())
            self._places = [_Output(self, name, part) for name, part in self._parts.items()]
        for place in self._places:
            place.put()
        for number, (owner, own_name, _, parameter) in enumerate(self._watched):
            if owner._parameters.get(own_name) is parameter:
                self._watch(parameter, number)
            else:
                before = functools.partial(self._before, own_name, number)
                self._hooks.append(owner.register_forward_pre_hook(before, prepend=False))

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Within, nothing is watched, no hook is left, and parts have their own `forward`."""
        for each in (*self._places, *self._hooks):
            each.remove()
        self._hooks = []
        self._generation += 1
        try:
            yield
        finally:
            self.sharded()

    def micro_batch_over(self, loss: float | None = None) -> None:
        """A backward pass is over, with `loss` where that is known yet. What it noted stays as far as it may be needed,
        also if the next one notes the same."""
        if loss is not None and math.isfinite(loss):
            self._outputs.clear()
        last = [gradient for gradient in self._last if gradient is not None]
        if last:
            if not math.isfinite(torch.cat(last).sum(dtype=torch.float32).item()):
                named = zip(self._watched, self._last, strict=True)
                self._earlier_gradients += [
                    (_gradient(name), each) for (*_, name, _), each in named if each is not None
                ]
            self._last[:] = [None] * len(self._last)
        if self._gradients:
            if loss is None or not all(bool(gradient.isfinite()) for gradient in self._gradients.values()):
                self._earlier_gradients.extend(self._gradients.items())
            self._gradients.clear()

    def take(self) -> tuple[list[Noted], list[Noted]]:
        """What was noted since the last call: outputs and gradients, each in the order in which they came up. On a CPU
        there are gradients only where one is not finite."""
        # Of a parameter that a part returned, FSDP2 has taken the memory away.
        outputs = [
            (f"the output of {name}", tensor) for name, tensor in self._outputs if tensor.untyped_storage().size()
        ]
        self._outputs.clear()
        gradients, self._earlier_gradients = self._earlier_gradients, []
        return outputs, gradients

    def _before(self, own_name: str, number: int, owner: nn.Module, inputs: Any) -> None:
        parameter = owner._parameters[own_name]
        mine = (self, self._generation)
        if parameter is not None and getattr(parameter, "_finite_watch", None) != mine and parameter.requires_grad:
            parameter._finite_watch = mine  # pyright: ignore[reportAttributeAccessIssue]
            self._watch(parameter, number)

    def _watch(self, parameter: nn.Parameter, number: int) -> None:
        name = self._watched[number][2]
        if parameter.is_cuda:
            hook = functools.partial(self._note_sum, _gradient(name))
        elif self._is_small[name]:
            hook = functools.partial(operator.setitem, self._last, number)
        else:
            hook = functools.partial(self._keep_sum, number)
        self._hooks.append(parameter.register_hook(hook))

    def _keep_sum(self, number: int, gradient: torch.Tensor) -> None:
        self._last[number] = gradient.sum(dtype=torch.float32).reshape(1)

    def _note_sum(self, what: str, gradient: torch.Tensor) -> None:
        self._gradients[what] = gradient.sum(dtype=torch.float32)


def _gradient(name: str) -> str:
    return f"the gradient of {name}"


class _Output:
    """Stands in the place of a part's `forward`, the same one each time: torch's compiler, where a user's model calls
    it, would compile anew for every other."""

    def __init__(self, watch: FiniteWatch, name: str, part: nn.Module) -> None:
        self._watch = watch
        self._name = name
        self._part = part
        self._note = watch._outputs.append
        self._here = False
        self._buried = False
        self.__wrapped__: Any = None

    def put(self) -> None:
        self._here = True
        if self._buried:
            return
        self._was_own = "forward" in vars(self._part)
        if self.__wrapped__ != self._part.forward:
            functools.update_wrapper(self, self._part.forward, updated=())
        self._part.forward = self

    def remove(self) -> None:
        self._here = False
        # Somebody may have put something around it: then it stays there, and does nothing.
        self._buried = vars(self._part).get("forward") is not self
        if self._buried:
            return
        if self._was_own:
            self._part.forward = self.__wrapped__
        else:
            del self._part.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.__wrapped__(*args, **kwargs)
        if self._here and torch.is_grad_enabled():
            if type(output) is torch.Tensor and not output.is_cuda and not self._watch._compiled:
                if output.numel() <= SMALL_ELEMENTS and output.is_floating_point():
                    self._note((self._name, output.detach()))
            else:
                self._look(output)
        return output

    def __reduce__(self) -> Any:
        """A deep copy of the part, and what is stored of it, has what stood here before."""
        return _itself, (self.__wrapped__,)

    def _look(self, output: Any) -> None:
        watch = self._watch
        for tensor in _tensors(output):
            if not (tensor.is_floating_point() and tensor.numel()):
                continue
            if tensor.is_cuda:
                self._note((self._name, tensor.detach().sum(dtype=torch.float32)))
            elif tensor.numel() <= SMALL_ELEMENTS and not watch._on_cuda:
                self._note((self._name, tensor.detach()))
            if watch._compiled and tensor.requires_grad:
                what = f"the gradient at the output of {self._name}"
                tensor.register_hook(functools.partial(watch._note_sum, what))


def _itself(value: Any) -> Any:
    return value


def parts_of(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """What is watched of `model`, by name: its `blocks`, and its direct children that hold none of them; none that is
    scripted."""
    inside = {id(block) for block in blocks}
    for child in model.children():
        if not any(id(module) in inside for module in child.modules()):
            inside.add(id(child))
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and name and not isinstance(module, torch.jit.ScriptModule)
    }


def first_not_finite(noted: Sequence[Noted]) -> str | None:
    """What comes first of `noted` that is not finite."""
    return next((what for what, tensor in noted if not bool(tensor.isfinite().all())), None)


def _smallest(part: nn.Module) -> tuple[nn.Module, str, str] | None:
    """The module that holds the smallest trainable parameter of `part`, its name there, and its path in `part`."""
    found = [
        (parameter.numel(), index, module, name, f"{path}.{name}" if path else name)
        for index, (path, module) in enumerate(part.named_modules())
        if not isinstance(module, torch.jit.ScriptModule)
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
