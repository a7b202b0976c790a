"""Where a step asks for a value that a GPU has yet to compute, so that the host waits: the operator and the line.

The profiler's own stacks name the function alone; here the frame is looked at while the operator runs. On CPU such a
line costs nothing, and is worth knowing before the job moves to a GPU.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections import Counter
from types import FrameType
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..used import HostSync

aten = torch.ops.aten
# Their results are numbers of the host, or have a size that their values decide.
WAITS = frozenset(
    {
        aten._local_scalar_dense.default,
        aten.nonzero.default,
        aten.masked_select.default,
        aten.equal.default,
        aten.bincount.default,
        aten.unique_consecutive.default,
        aten.unique_dim.default,
        aten._unique2.default,
        aten.is_nonzero.default,
    }
)
_INDEXING = frozenset({aten.index.Tensor, aten.index_put_.default, aten.index_put.default})
_COPIES = frozenset({aten._to_copy.default, aten.copy_.default})
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_STANDARD = sysconfig.get_path("stdlib")
_INSTALLED = os.sep + "site-packages" + os.sep


class SyncLines:
    """Counts such operators by line, of one step at a time. `on_cuda`, those that are given nothing on a GPU wait for
    none."""

    def __init__(self, *, on_cuda: bool = False) -> None:
        self._calls: Counter[tuple[str, str | None]] = Counter()
        self._on_cuda = on_cuda

    def begin(self) -> None:
        """A step begins: what was counted is forgotten."""
        self._calls.clear()

    def heard(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operator ran, on the calling thread."""
        if func in WAITS or _waits_here(func, args, kwargs or {}, result):
            given = (each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor))
            if self._on_cuda and not any(each.is_cuda for each in given):
                return
            self._calls[func._schema.name, _line(sys._getframe(1))] += 1

    def found(self) -> list[HostSync]:
        """What was counted, the most frequent first; what measuring itself asks for on CPU is left out."""
        return [
            HostSync(operator=operator, source=source, calls=calls)
            for (operator, source), calls in self._calls.most_common()
            if source != ""
        ]


def _waits_here(func: Any, args: Any, kwargs: Any, result: Any) -> bool:
    """Whether an operator waits for these arguments: an index by a mask, whose size its values decide; a repetition
    without its size; a copy from a GPU to the host that is not told to go on."""
    if func in _INDEXING:
        return any(isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1])
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if func not in _COPIES or kwargs.get("non_blocking") or (func is aten.copy_.default and True in args[2:]):
        return False
    source = next((each for each in reversed(args) if isinstance(each, torch.Tensor)), None)
    return source is not None and source.is_cuda and isinstance(result, torch.Tensor) and not result.is_cuda


def _line(frame: FrameType | None) -> str | None:
    """The innermost line that is neither torch's nor an installed library's; empty where the probe asked."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_OURS) and os.path.basename(file) in ("probe.py", "finite.py"):
            return ""
        outside = file.startswith((_TORCH, _OURS, _STANDARD, "<")) or _INSTALLED in file
        if not outside:
            return f"{file}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return None
