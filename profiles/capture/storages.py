"""Every storage that a step makes and releases, in order: when, how large, in which phase and module.

Storages are seen where operations take and return them, in a dispatch mode; their end by weak references. What autograd
saves is seen by its own hooks. An operation's working memory, and what a library in C++ allocates for itself, is not.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    is_traceable_wrapper_subclass,
    is_traceable_wrapper_subclass_type,
)

# Operations under these names hand their tensors to other ranks.
COLLECTIVES = frozenset({"c10d", "_c10d_functional"})
# Phases in which memory comes from elsewhere: a loader's process or thread.
FEEDING = frozenset({"data", "h2d"})
_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]
_is_wrapper_type = functools.cache(is_traceable_wrapper_subclass_type)


@dataclass(slots=True)
class Held:
    """A storage that was met. `made` is the number of the followed step that was seen to make it, in `module`; None
    where none was. `marks` say what it turned out to be."""

    size: int
    made: int | None
    module: str | None = None
    marks: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Event:
    """`held` changed by `delta` bytes, at `at_ns` of the clock."""

    at_ns: int
    held: Held
    delta: int
    phase: str | None
    module: str | None


class StorageLog(TorchDispatchMode):
    """Follows the storages on devices of one type, step by step: `with log.step(): ...`.

    `names` has the path of each module. `kept` are operations whose results a checkpoint keeps by itself, out of sight
    of autograd's hooks; `buckets()`, asked at each collective, is where gradients are collected for it; `heard` is
    told of each operation. A fault of the
    log's own never reaches the step: `failed` then says what it was.
    """

    def __init__(
        self,
        device_type: str,
        names: dict[nn.Module, str],
        kept: frozenset[Any] = frozenset(),
        buckets: Callable[[], Iterable[torch.Tensor]] = tuple,
        clock: Callable[[], int] = time.perf_counter_ns,
        heard: Callable[[Any, Any, Any, Any], object] = lambda func, args, kwargs, result: None,
    ) -> None:
        super().__init__()
        self.phase: str | None = None
        self.failed: str | None = None
        self.events: list[Event] = []
        self.before: dict[int, tuple[Held, int]] = {}
        """What was there when the step began, and its bytes then, by identity."""
        self.began_ns = 0
        self._device_type = device_type
        self._names = names
        self._kept = kept
        self._buckets = buckets
        self._clock = clock
        self._heard = heard
        self._number = -1
        self._alive: dict[int, tuple[Any, Held]] = {}
        self._modules: list[str | None] = []
        self._unpacked: str | None = None
        self._kept_results: list[Held] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one step: its events replace those of the step before."""
        self._number += 1
        self.began_ns = self._clock()
        self.events = []
        alive = [held for _, held in list(self._alive.values())]
        for held in alive:
            held.marks &= {"batch"}  # a feed may keep what it hands out
        self.before = {id(held): (held, held.size) for held in alive}
        with ExitStack() as stack:
            stack.enter_context(_resizing(lambda storage: self.attempt(self._resized, storage)))
            stack.callback(hooks.register_module_forward_pre_hook(self._enter_module).remove)
            stack.callback(hooks.register_module_forward_hook(self._leave_module, always_call=True).remove)
            stack.enter_context(saved_tensors_hooks(self._pack, self._unpack))
            stack.enter_context(self)
            try:
                yield
            finally:
                self.phase, self._unpacked = None, None
                self._modules.clear()

    def leaked_bytes(self) -> Counter[str | None]:
        """Bytes that live on of what the followed steps were seen to make, by the module that made it."""
        found: Counter[str | None] = Counter()
        for _, held in list(self._alive.values()):
            if held.made is not None:
                found[held.module] += held.size
        return found

    def mark(self, tensors: Iterable[torch.Tensor], what: str) -> None:
        """These are `what`. Those that no operation was seen to make were there before the step, but for a batch."""
        for tensor in tensors:
            for held in self._meet(tensor, made=False, now=what == "batch"):
                held.marks.add(what)

    def forward_over(self) -> None:
        """What a checkpoint keeps of a forward is still alive at its end."""
        alive = {id(held) for _, held in list(self._alive.values())}
        for held in self._kept_results:
            if id(held) in alive:
                held.marks.add("saved")
        self._kept_results.clear()

    def attempt(self, act: Callable[..., object], *arguments: Any) -> None:
        """Call `act`, which may fail where the step must not; then nothing more is followed."""
        if self.failed is None:
            try:
                act(*arguments)
            except Exception as error:
                self.failed = f"storages could not be followed: {type(error).__name__}: {error}"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(_is_wrapper_type(kind) for kind in types):
            return NotImplemented  # a DTensor comes again as what it is made of
        result = func(*args, **(kwargs or {}))
        self.attempt(self._look, func, args, kwargs, result)
        self.attempt(self._heard, func, args, kwargs, result)
        return result

    def _look(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        handed = func.namespace in COLLECTIVES
        if handed:
            self.mark(self._buckets(), "handed")
        for tensor in _tensors(args if not kwargs else (args, kwargs)):
            gathered = isinstance(tensor, nn.Parameter)
            for held in self._meet(tensor, made=False):
                if handed:
                    held.marks.add("handed")
                if gathered:
                    held.marks.add("parameter")
        keeps = func in self._kept and self.phase == "forward"
        for tensor in _tensors(result):
            for held in self._meet(tensor, made=True):
                if keeps:
                    self._kept_results.append(held)

    def _meet(self, tensor: torch.Tensor, *, made: bool, now: bool = False) -> list[Held]:
        """What is behind `tensor`, noted if it is new or has another size."""
        if is_traceable_wrapper_subclass(tensor):
            parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])  # a mesh may be among them
            tensors = (part for part in parts if isinstance(part, torch.Tensor))
            return [held for part in tensors for held in self._meet(part, made=made, now=now)]
        if tensor.device.type != self._device_type or tensor.layout != torch.strided:
            return []
        storage = tensor.untyped_storage()
        known = self._alive.get(storage._cdata)
        if known is None:
            before = not made and not now and self.phase not in FEEDING
            return [self._new(storage, made=made, before=before)]
        held = known[1]
        if held.size != (size := storage.nbytes()):
            self._changed(held, size)
        return [held]

    def _new(self, storage: torch.UntypedStorage, *, made: bool, before: bool) -> Held:
        key, held = storage._cdata, Held(0, self._number if made else None, self._module())

        def gone(_: Any) -> None:
            del self._alive[key]
            self._changed(held, 0)

        self._alive[key] = weakref.ref(storage, gone), held
        if before:
            held.size = storage.nbytes()
            self.before[id(held)] = held, held.size
        else:
            self._changed(held, storage.nbytes())
        return held

    def _changed(self, held: Held, size: int) -> None:
        delta, held.size = size - held.size, size
        if delta:
            self.events.append(Event(self._clock(), held, delta, self.phase, self._module()))

    def _module(self) -> str | None:
        """The module that runs; in backward, that of the tensor which autograd took up last."""
        return self._modules[-1] if self._modules else self._unpacked

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        self._modules.append(self._names.get(module) or (self._modules[-1] if self._modules else None))

    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._modules:
            self._modules.pop()

    def _pack(self, tensor: torch.Tensor) -> tuple[torch.Tensor, str | None]:
        self.attempt(self.mark, (tensor,), "saved")
        # An operation's own result would hold itself through its graph. Leaves stay what they are: a strategy puts
        # other contents into its parameters before backward.
        return tensor if tensor.grad_fn is None else tensor.detach(), self._module()

    def _unpack(self, packed: tuple[torch.Tensor, str | None]) -> torch.Tensor:
        tensor, self._unpacked = packed
        return tensor

    def _resized(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != self._device_type:
            return
        known = self._alive.get(storage._cdata)
        if known is None:
            self._new(storage, made=False, before=False)
        else:
            self._changed(known[1], storage.nbytes())

    @functools.cached_property
    def recomputing(self) -> _Recomputing:
        """Around each recomputation of activations: what it saves is seen beside the checkpoint's own hooks."""
        return _Recomputing(self)


class _Recomputing:
    """torch's checkpoint takes what a recomputation saves by hooks of its own, which hide all others."""

    def __init__(self, log: StorageLog) -> None:
        self._log = log
        self._hooks: saved_tensors_hooks | None = None

    def __enter__(self) -> None:
        if (top := _top_hooks(False)) is None:
            return
        pack, unpack = top

        def both(tensor: torch.Tensor) -> Any:
            self._log.attempt(self._log.mark, (tensor,), "saved")
            return pack(tensor)

        self._hooks = saved_tensors_hooks(both, unpack)
        self._hooks.__enter__()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
            self._hooks = None


@contextmanager
def _resizing(resized: Callable[[torch.UntypedStorage], None]) -> Iterator[None]:
    """Within, `resized` hears of storages whose size is changed without an operation, as FSDP2 does."""
    original = torch.UntypedStorage.resize_

    def resize_(self: torch.UntypedStorage, size: int) -> Any:
        done = original(self, size)
        resized(self)
        return done

    torch.UntypedStorage.resize_ = resize_
    try:
        yield
    finally:
        # It is inherited from a class in C: an attribute of its own would stay in the way.
        del torch.UntypedStorage.resize_


def _tensors(nest: Any) -> Iterator[torch.Tensor]:
    if isinstance(nest, torch.Tensor):
        yield nest
    elif isinstance(nest, tuple | list):
        for each in nest:
            yield from _tensors(each)
    elif isinstance(nest, dict):
        for each in nest.values():
            yield from _tensors(each)
