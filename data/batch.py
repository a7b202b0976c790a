"""Puts samples together into a batch, as `schema` describes it: ragged points and boxes padded, with masks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from .decode import Sample
from .errors import DataError
from .schema import BOX_FIELDS, TEXT_BYTES

POINTS_MULTIPLE = 1024
BOXES_MULTIPLE = 8


def collate(
    samples: Sequence[Sample], *, points_multiple: int = POINTS_MULTIPLE, boxes_multiple: int = BOXES_MULTIPLE
) -> dict[str, torch.Tensor]:
    """The batch of `samples`, at least one.

    Points and boxes are padded to the longest sample, rounded up to a multiple (at least one multiple), which
    keeps the number of distinct shapes small. Commands are cut at `TEXT_BYTES` bytes, with a warning. Raises
    `DataError` if cameras differ in number or size between the samples.
    """
    first = samples[0]
    cameras, size = len(first["images"]), first["images"][0].shape
    for sample in samples:
        found = len(sample["images"]), sample["images"][0].shape
        if found != (cameras, size):
            raise DataError(
                f"{sample['shard']}: sample {sample['key']!r}: has {found[0]} images of {found[1][2]}x{found[1][1]}, "
                f"{first['key']!r} has {cameras} of {size[2]}x{size[1]}; a batch needs equal ones: give an image "
                "size, and the same number of cameras everywhere"
            )
    images = np.stack([image for sample in samples for image in sample["images"]])
    batch = {"images": torch.from_numpy(images.reshape(len(samples), cameras, *size))}
    for name in ("intrinsics", "distortion", "extrinsics", "ego"):
        batch[name] = torch.from_numpy(np.stack([sample[name] for sample in samples]))
    points = _pad([sample["points"] for sample in samples], points_multiple, 4)
    boxes = _pad([sample["boxes"] for sample in samples], boxes_multiple, len(BOX_FIELDS))
    tokens = torch.zeros(len(samples), TEXT_BYTES, dtype=torch.int64)
    classes = torch.full(boxes[1].shape, -1, dtype=torch.int64)
    for row, sample in enumerate(samples):
        text = np.frombuffer(sample["command"][:TEXT_BYTES], np.uint8)
        if len(sample["command"]) > TEXT_BYTES:
            warnings.warn(f"route commands longer than {TEXT_BYTES} bytes are cut", stacklevel=2)
        tokens[row, : len(text)] = torch.from_numpy(text.astype(np.int64) + 1)
        classes[row, : len(sample["classes"])] = torch.from_numpy(sample["classes"])
    return batch | {
        "points": points[0],
        "points_mask": points[1],
        "tokens": tokens,
        "boxes": boxes[0],
        "classes": classes,
        "boxes_mask": boxes[1],
    }


def _pad(rows: list[np.ndarray], multiple: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 (B, L, width), zero padded, and bool (B, L), True where real; L is a multiple of `multiple`."""
    length = max(1, -(-max(len(row) for row in rows) // multiple)) * multiple
    padded = torch.zeros(len(rows), length, width)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.from_numpy(row)
        mask[number, : len(row)] = True
    return padded, mask
