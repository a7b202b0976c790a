"""What DeepSpeed needs of a module whose parameters stage 3 gathers together, seen to or refused.

It reduces such a module's gradients in a full backward hook, which torch runs when the gradients of the module's
positional inputs are complete; where none of them needs one, that is before the parameters have theirs.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ...models.errors import ModelError

WAY_OUT = "use --strategy fsdp2, or name other blocks in blocks(model)"


def keep_leaf_rules(block: nn.Module, has_run: set[nn.Module]) -> None:
    """Hand `block` its arguments by position, one of them in need of a gradient; refuse what cannot be had so.

    `has_run` collects the blocks of a forward: DeepSpeed reduces each once.
    """
    signature = inspect.signature(block.forward)
    kind = type(block).__name__

    def prepare(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not torch.is_grad_enabled():
            return args, kwargs
        if module in has_run:
            raise ModelError(f"--strategy zero3: block {kind} runs twice in one forward; {WAY_OUT}")
        has_run.add(module)
        bound = signature.bind(*args, **kwargs)
        args, kwargs = bound.args, bound.kwargs
        tensors = [index for index, value in enumerate(args) if isinstance(value, torch.Tensor)]
        if any(args[index].requires_grad for index in tensors):
            return args, kwargs
        real = [index for index in tensors if args[index].is_floating_point()]
        if not real:
            raise ModelError(f"--strategy zero3: block {kind} takes no floating-point tensor as an argument; {WAY_OUT}")
        first = real[0]
        return (*args[:first], args[first].detach().requires_grad_(), *args[first + 1 :]), kwargs

    def check(module: nn.Module, args: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple | list) else (output,)
        if not all(isinstance(part, torch.Tensor) for part in parts):
            raise ModelError(f"--strategy zero3: block {kind} returns something else than tensors; {WAY_OUT}")

    block.register_forward_pre_hook(prepare, with_kwargs=True)
    block.register_forward_hook(check)
