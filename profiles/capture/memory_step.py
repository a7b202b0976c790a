"""A probe for steps whose memory is followed: the log of storages is told of model state and batch, and what it has
seen becomes a record. docs/memory.md says what each kind is."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from ..used import MEMORY_KINDS, MemoryStepRecord
from .allocator import Allocator
from .ledger import Change, ledger
from .operators import OperatorCount
from .probe import Probe
from .steps import ScheduledStep
from .storages import Held, StorageLog
from .sync_lines import SyncLines

STATE = MEMORY_KINDS[:3]


class Followed(Protocol):
    """What is followed: a model under its strategy."""

    module: nn.Module

    def state(self) -> Mapping[str, list[torch.Tensor]]: ...


class MemoryProbe:
    """Hands the loop's calls to `probe`, but for those that would allocate, and follows storages in between. The last
    step's kinds and timeline are in the record; `followed(batch)` tells of a batch that is on its device."""

    def __init__(
        self,
        probe: Probe,
        run: Followed,
        log: StorageLog,
        allocator: Allocator | None = None,
        syncs: SyncLines | None = None,
        operators: OperatorCount | None = None,
    ) -> None:
        self._probe = probe
        self._run = run
        self._log = log
        self._allocator = allocator
        self._syncs = syncs or SyncLines()
        self._operators = operators
        self._figures: Any = None
        self._left: list[Counter[str | None]] = []
        self._gathers = False

    @contextmanager
    def step(self, step: ScheduledStep) -> Iterator[None]:
        log = self._log
        with self._probe.step(step):
            if self._allocator is not None:
                self._allocator.begin()
            self._syncs.begin()
            if self._operators is not None:
                self._operators.begin()
            with log.step():
                log.attempt(self._state_of_now)
                yield
            if self._allocator is not None:
                self._figures = self._allocator.end()
        # A cycle of objects is garbage, and no leak, though its storages live until the collector comes by.
        gc.collect()
        self._left.append(log.leaked_bytes())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        log = self._log
        with self._probe.phase(name):
            self._now(name)
            yield
            self._now(None)
        if name == "forward":
            log.attempt(log.forward_over)
        elif name == "backward":
            log.attempt(self._gradients_of_now)
        elif name == "optimizer":
            log.attempt(self._state_of_now)  # an update may have put its results into new storages

    def _now(self, phase: str | None) -> None:
        self._log.phase = phase
        if self._operators is not None:
            self._operators.phase = phase

    def followed(self, batch: Any) -> Any:
        """`batch`, of which the log now knows."""
        self._log.attempt(lambda: self._log.mark(_tensors(batch), "batch"))
        return batch

    def drawn(self, batch: Any) -> None:
        return

    def loss(self, loss: torch.Tensor) -> None:
        return

    def gradients_ready(self, run: Any) -> None:
        self._log.attempt(self._state_of_now)

    def updated(self, run: Any) -> None:
        return

    def event(self, kind: Any, step: int) -> AbstractContextManager[dict[str, Any]]:
        return nullcontext({})

    def record(self, step: int, operator_seconds: dict[str, float] | None = None) -> MemoryStepRecord:
        """Of the steps so far, the last of which was `step`."""
        log = self._log
        if log.failed is not None:
            return MemoryStepRecord(step=step, failed=log.failed, allocator=self._figures)
        before: Counter[str] = Counter()
        for held, size in log.before.values():
            before[self._kind(held)] += size
        changes = [
            Change((event.at_ns - log.began_ns) * 1e-9, self._kind(event.held), event.delta, event.phase, event.module)
            for event in log.events
        ]
        peak, timeline = ledger(before, changes)
        return MemoryStepRecord(
            step=step,
            peak=peak,
            timeline=timeline,
            left_bytes=[left.total() for left in self._left],
            left_by=self._left_by(),
            allocator=self._figures,
            host_syncs=self._syncs.found(),
            operators=None if self._operators is None else dict(self._operators.calls),
            operator_seconds_by_phase=operator_seconds,
        )

    def _left_by(self) -> str | None:
        """The module of which the last step has left most behind beyond the one before it."""
        grown = self._left[-1] - self._left[-2] if len(self._left) > 1 else Counter[str | None]()
        return max(grown, key=lambda module: grown[module], default=None)

    def _kind(self, held: Held) -> str:
        """The first that holds, for the whole life of a storage in the step."""
        marks = held.marks
        for kind in (*STATE, "batch"):
            if kind in marks:
                return kind
        if "parameter" in marks:
            # No model state: it was gathered from other ranks, or is a weight that the model has not registered.
            return "communication" if self._gathers else "parameters"
        if "saved" in marks:
            return "activations"
        if "handed" in marks:
            return "communication"
        return "unaccounted" if id(held) in self._log.before else "temporary"

    def _state_of_now(self) -> None:
        with _disable_current_modes():
            state = self._run.state()
            for kind, tensors in state.items():
                self._log.mark(tensors, kind)
            # What ZeRO-3 has partitioned stands there empty, beside this rank's part of it.
            own = {tensor.untyped_storage()._cdata for tensor in state["parameters"] if tensor.numel()}
            self._gathers = any(
                is_traceable_wrapper_subclass(parameter) or parameter.untyped_storage()._cdata not in own
                for parameter in self._run.module.parameters()
            )

    def _gradients_of_now(self) -> None:
        """Whole gradients that wait for the next micro-batch or their reduction are no state of every strategy."""
        with _disable_current_modes():
            held = [parameter.grad for parameter in self._run.module.parameters()]
            self._log.mark([gradient for gradient in held if gradient is not None], "gradients")


def _tensors(nest: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, torch.Tensor)]
