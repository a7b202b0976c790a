"""Lines at which a host waits for its device: the exact ones, once each, and none of the lab's own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from scalelab.profiles.analysis.trace.syncs import within_package
from scalelab.profiles.capture.operators import OperatorCount
from scalelab.profiles.capture.storages import StorageLog
from scalelab.profiles.capture.sync_lines import SyncLines


def planted(x: torch.Tensor) -> float:
    total = x.sum().item()
    for _ in range(3):
        x.nonzero()
    return total + float(x[0])


def line_of(text: str) -> int:
    lines, first = inspect.getsourcelines(planted)
    return first + next(number for number, line in enumerate(lines) if text in line)


def followed(act: Any) -> list[tuple[str, str | None, int]]:
    syncs = SyncLines()
    log = StorageLog("cpu", {}, heard=syncs.heard)
    syncs.begin()
    with log.step():
        act()
    assert log.failed is None
    return [(sync.operator, sync.source, sync.calls) for sync in syncs.found()]


def test_each_wait_is_named_by_its_own_line() -> None:
    """Not by the function's first, nor by torch's frames in between."""
    found = followed(lambda: planted(torch.ones(4)))
    expected = [
        ("aten::nonzero", f"{__file__}:{line_of('nonzero')} (planted)", 3),
        ("aten::_local_scalar_dense", f"{__file__}:{line_of('.item()')} (planted)", 1),
        ("aten::_local_scalar_dense", f"{__file__}:{line_of('float(')} (planted)", 1),
    ]
    assert found == expected


def masked(x: torch.Tensor) -> None:
    x[x > 0]
    x[x > 0] = 1.0
    torch.equal(x, x)
    torch.repeat_interleave(torch.tensor([1, 2]))


def test_masks_and_comparisons_wait_too() -> None:
    x = torch.ones(4)
    found = followed(lambda: masked(x))
    assert {operator for operator, _, _ in found} == {
        "aten::index", "aten::index_put_", "aten::equal", "aten::repeat_interleave",
    }  # fmt: skip
    assert all(source is not None and source.endswith("(masked)") for _, source, _ in found)


def unhurried(x: torch.Tensor) -> None:
    x[torch.tensor([0, 2])]
    torch.repeat_interleave(torch.tensor([1, 2]), output_size=3)
    x.to(torch.float64)


def test_what_waits_for_nothing_is_not_named() -> None:
    x = torch.ones(4, requires_grad=True)
    assert followed(lambda: (x * 2).sum().backward()) == []
    assert followed(lambda: unhurried(torch.ones(4))) == []


def test_a_loader_waits_for_no_gpu() -> None:
    """What it reads lies on the host; nor does code on CUDA wait whose operators are given nothing there."""
    counted, on_cuda = SyncLines(), SyncLines(on_cuda=True)
    operators = OperatorCount(then=counted.heard)
    log = StorageLog("cpu", {}, heard=operators.heard)
    for phase, calls in (("data", 0), ("forward", 5)):
        operators.phase = phase
        counted.begin()
        with log.step():
            planted(torch.ones(4))
        assert sum(sync.calls for sync in counted.found()) == calls
    with StorageLog("cpu", {}, heard=on_cuda.heard).step():
        planted(torch.ones(4))
    assert on_cuda.found() == []


def test_a_step_forgets_the_one_before() -> None:
    syncs = SyncLines()
    log = StorageLog("cpu", {}, heard=syncs.heard)
    for _ in range(2):
        syncs.begin()
        with log.step():
            planted(torch.ones(4))
    assert [sync.calls for sync in syncs.found()] == [3, 1, 1]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/a/build/__editable__.x/scalelab/launch/loop.py:3 (train)", "scalelab/launch/loop.py:3 (train)"),
        ("scalelab/launch/loop.py:3 (train)", "scalelab/launch/loop.py:3 (train)"),
        ("/home/u/scalelab/mine.py:3 (f)", "/home/u/scalelab/mine.py:3 (f)"),
    ],
)
def test_our_own_lines_are_named_from_the_package_on(source: str, said: str) -> None:
    """Wherever it is installed; a user's stay whole."""
    assert within_package(source) == said
