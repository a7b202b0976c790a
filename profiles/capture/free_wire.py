"""What a collective leaves behind on a free wire: finite numbers in every place that it would write, from this rank
alone.

Each function takes the group and the arguments of its method of torch's ProcessGroup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed import ProcessGroup


def tensors(value: Any) -> list[torch.Tensor]:
    """A tensor, or all in a list of lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for each in value for tensor in tensors(each)]


def keep(group: ProcessGroup, arguments: Sequence[Any]) -> None:
    """The free wire's contents where a tensor is changed in place: its own."""


def gather(group: ProcessGroup, arguments: Sequence[Any]) -> None:
    """This rank's part in its place, zeros in the others', and as much to write as of the true parts. Its own part
    there would bring what pads it, which is memory that nobody has set, to where numbers are read."""
    outputs, parts = tensors(arguments[0]), tensors(arguments[1])
    size = group.size()
    if len(outputs) == len(parts):
        slots = [(slot, part) for output, part in zip(outputs, parts, strict=True) for slot in output.chunk(size)]
    else:
        slots = [(output, parts[index // size]) for index, output in enumerate(outputs)]
    for index, (slot, part) in enumerate(slots):
        if index % size == group.rank():
            slot.copy_(part.view_as(slot))
        else:
            slot.zero_()


def scatter(group: ProcessGroup, arguments: Sequence[Any]) -> None:
    """This rank's part of its own sum."""
    outputs, inputs = tensors(arguments[0]), tensors(arguments[1])
    per_output = len(inputs) // max(1, len(outputs))
    for index, output in enumerate(outputs):
        if per_output > 1:
            output.copy_(inputs[index * per_output + group.rank()].view_as(output))
        else:
            output.view(-1).copy_(inputs[index].reshape(group.size(), -1)[group.rank()])


def exchange(group: ProcessGroup, arguments: Sequence[Any]) -> None:
    """What this rank would send, as if received."""
    for output, part in zip(tensors(arguments[0]), tensors(arguments[1]), strict=False):
        count = min(output.numel(), part.numel())
        output.zero_()
        output.view(-1)[:count].copy_(part.reshape(-1)[:count])


def receive(group: ProcessGroup, arguments: Sequence[Any]) -> None:
    """Zeros."""
    for tensor in tensors(arguments[0]):
        tensor.zero_()
