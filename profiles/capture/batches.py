"""Shapes of the micro-batches that a rank trains on, and how much of them is padding: what operations depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..records import Role
from ..used import BatchesRecord

Shapes = tuple[tuple[tuple[int, ...], torch.dtype], ...]
"""Shape and dtype of each tensor in a batch, in their order."""


FIRST_DIMENSIONS = 16
"""More than as many are not recorded."""


def shapes_of(batch: Any) -> Shapes:
    """Those of a batch."""
    return _shapes(tree_flatten(batch)[0])


def _shapes(leaves: Sequence[Any]) -> Shapes:
    return tuple([(leaf.shape, leaf.dtype) for leaf in leaves if isinstance(leaf, torch.Tensor)])


def _leaves(batch: Any) -> Sequence[Any]:
    """Those of `batch`, as tree_flatten has them, which is written in Python and costs a small step half a percent."""
    if isinstance(batch, torch.Tensor):
        return (batch,)
    if type(batch) is dict:
        leaves = list(batch.values())
        if all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return leaves
    return tree_flatten(batch)[0]


@dataclass
class Seen:
    """How many micro-batches had which shapes. `filled` has, by mask, how many of the elements in how many rows were
    real, and how many there were; None where a mask cannot be read."""

    shapes: Counter[Shapes] = field(default_factory=Counter)
    filled: dict[str, tuple[int, int, int]] | None = field(default_factory=dict)

    def add(self, other: Seen) -> None:
        """Take in what another rank has seen."""
        self.shapes.update(other.shapes)
        if self.filled is None or other.filled is None:
            self.filled = None
            return
        for mask, counts in other.filled.items():
            before = self.filled.get(mask, (0, 0, 0))
            self.filled[mask] = (before[0] + counts[0], before[1] + counts[1], before[2] + counts[2])


@dataclass
class _Held:
    """Of each micro-batch the elements of its tensors, and by mask how many are real; `seen` adds them up."""

    elements: list[int] = field(default_factory=list)
    real: dict[str, list[int]] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)


class BatchTally:
    """What the micro-batches of measured steps held. Those of other steps are looked at as well, and left out: so a
    step with the probe costs the same wherever that cost is measured.

    `masks` are keys of a batch whose elements are non-zero where something is real, rows first. They are read on the
    host alone: a batch that is on a device already is not waited for.
    """

    def __init__(self, masks: Sequence[str]) -> None:
        self._masks = masks
        self._measured, self._others = _Held(), _Held()
        self._example: tuple[list[Any], Any] | None = None

    @property
    def seen(self) -> Seen:
        """Of measured steps."""
        return self._measured.seen

    def note(self, batch: Any, role: Role) -> None:
        """The next micro-batch, before it goes to its device, of a step of that `role`."""
        held = self._measured if role == "measured" else self._others
        leaves = _leaves(batch)
        held.elements.append(sum([leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor)]))
        held.seen.shapes[_shapes(leaves)] += 1
        if self._example is None:
            structure = tree_flatten(batch)[1]
            self._example = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], structure
            self._places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        if held.seen.filled is not None:
            held.seen.filled = self._filled(batch, held, held.seen.filled)

    def _filled(
        self, batch: Any, held: _Held, before: dict[str, tuple[int, int, int]]
    ) -> dict[str, tuple[int, int, int]] | None:
        for name in self._masks:
            mask = batch.get(name) if isinstance(batch, Mapping) else None
            if not isinstance(mask, torch.Tensor) or mask.device.type != "cpu" or mask.dim() != 2:
                return None
            real, rows, there = before.get(name, (0, 0, 0))
            try:
                # numpy: torch takes ten times as long to count what is this small.
                more = int(np.count_nonzero(mask.numpy()))
            except (TypeError, RuntimeError):  # bfloat16, or one that requires gradients
                return None
            held.real.setdefault(name, []).append(more)
            before[name] = (real + more, rows + len(mask), there + mask.numel())
        return before

    def record(self) -> BatchesRecord:
        """What each micro-batch of measured steps held."""
        elements, real = self._measured.elements, self._measured.real
        whole = {name: counts for name, counts in real.items() if len(counts) == len(elements)}
        shapes = next((shapes for shapes, _ in self.seen.shapes.most_common(1)), ())
        first = sorted({shape[0] for shape, _ in shapes if shape})
        few = first if len(first) <= FIRST_DIMENSIONS else []
        return BatchesRecord(elements=elements, real=whole, first_dimensions=few)

    def like(self, shapes: Shapes, device: str, lengths: Mapping[str, int] | None = None) -> Any:
        """An empty batch of such `shapes`, other leaves as this rank first saw them. A tensor under a key in `lengths`
        has that many elements in its second dimension. Raises ValueError where `shapes` are of another structure."""
        assert self._example is not None
        leaves, structure = self._example
        if len(shapes) != len(self._places):
            raise ValueError("batches differ in their number of tensors")
        leaves = list(leaves)
        for place, (shape, dtype) in zip(self._places, shapes, strict=True):
            leaves[place] = torch.empty(shape, dtype=dtype, device=device)
        batch = tree_unflatten(leaves, structure)
        for name, length in (lengths or {}).items():
            whole = batch[name]
            batch[name] = whole.new_empty((whole.shape[0], length, *whole.shape[2:]))
        return batch
