"""Where a loop that is not ours enters forward, backward and the update, without a change to its code."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

Enter = Callable[[str], AbstractContextManager[None]]


class Seams:
    """Calls `enter(phase)` around the parts of a step.

    Forward begins when `model` is called and ends where backward begins, so that the loss belongs to it. Backward is
    torch.autograd.backward, the update the step of `optimizer`, or of the torch optimizer that it wraps. An engine that
    owns both (DeepSpeed's) is given as `model`: its own `backward` and `step` count.
    """

    def __init__(self, model: nn.Module, optimizer: Any, enter: Enter) -> None:
        self._enter = enter
        self._forward: AbstractContextManager[None] | None = None
        self._other: AbstractContextManager[None] | None = None
        self._undo: list[Callable[[], None]] = []
        self._undo.append(model.register_forward_pre_hook(self._forward_begins).remove)
        self._undo.append(model.register_forward_hook(self._forward_ends).remove)
        if callable(getattr(model, "backward", None)) and callable(getattr(model, "step", None)):
            self._wrap(model, "backward", "backward")
            self._wrap(model, "step", "optimizer")
        else:
            self._wrap(torch.autograd, "backward", "backward")
            inner = optimizer
            while inner is not None and not isinstance(inner, torch.optim.Optimizer):
                inner = getattr(inner, "optimizer", None)
            # Wrappers may be optimizers themselves and hold the true one.
            while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
                inner = getattr(inner, "optimizer")  # noqa: B009
            if optimizer is not None and inner is None:
                raise ValueError(
                    f"Probe.attach: {type(optimizer).__name__} is no torch optimizer and holds none in `.optimizer`"
                )
            if inner is not None:
                self._undo.append(inner.register_step_pre_hook(self._update_begins).remove)
                self._undo.append(inner.register_step_post_hook(self._update_ends).remove)

    def end(self) -> None:
        """The step is over: a forward that no backward followed ends here."""
        self._leave_forward()

    def abandon(self) -> None:
        """The step ended in an error: what it was in is left, and counts for nothing."""
        self._forward = self._other = None

    def remove(self) -> None:
        """Take every hook back."""
        while self._undo:
            self._undo.pop()()

    def _forward_begins(self, module: nn.Module, inputs: Any) -> None:
        if self._forward is None and self._other is None:
            self._forward = self._enter("forward")
            self._forward.__enter__()

    def _forward_ends(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            self._leave_forward()

    def _leave_forward(self) -> None:
        if self._forward is not None:
            left, self._forward = self._forward, None
            left.__exit__(None, None, None)

    def _update_begins(self, optimizer: Any, arguments: Any, options: Any) -> None:
        self._leave_forward()
        if self._other is None:
            self._other = self._enter("optimizer")
            self._other.__enter__()

    def _update_ends(self, optimizer: Any, arguments: Any, options: Any) -> None:
        if self._other is not None:
            left, self._other = self._other, None
            left.__exit__(None, None, None)

    def _wrap(self, owner: Any, name: str, phase: str) -> None:
        original, own = getattr(owner, name), name in vars(owner)

        @functools.wraps(original)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if self._other is not None:  # within another part: a backward that an engine calls, a wrapper's step
                return original(*arguments, **options)
            self._leave_forward()
            self._other = self._enter(phase)
            try:
                with self._other:
                    return original(*arguments, **options)
            finally:
                self._other = None

        def undo() -> None:
            if getattr(owner, name, None) is not wrapped:
                return  # wrapped again by another, which goes on through ours
            if own:
                setattr(owner, name, original)
            else:
                with contextlib.suppress(AttributeError):
                    delattr(owner, name)

        setattr(owner, name, wrapped)
        self._undo.append(undo)
