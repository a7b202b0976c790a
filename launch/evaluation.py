"""Held-out scenes: the loss and how well boxes are found, over all ranks, for our own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ..data.batch import collate
from ..data.manifest import open_folder
from ..data.readers.samples import SampleReader
from ..models.driving import DrivingModel, average_precision, truths
from .config import RunConfig
from .feed import to_device
from .ranks import Rank


class Evaluation:
    """Called on all ranks together; every rank gets the same result.

    Rank r takes samples r, r + world, … of the held-out split, all of them whatever the world size, so that the
    result does not depend on it. Every rank runs equally many forwards, which sharded parameters need: the last
    ones may repeat samples, whose results are dropped.
    """

    def __init__(self, model: DrivingModel, config: RunConfig, rank: Rank, device: torch.device) -> None:
        assert config.data is not None
        folder = Path(config.data)
        self._reader = SampleReader(folder, open_folder(folder).split("val"), model.image_size)
        self._model = model
        self._device = device
        self._rank = rank
        self._batch_size = config.micro_batch or 1

    def __call__(self) -> dict[str, Any]:
        """`val_loss`, AP and recall by class and on average; a class that no scene holds has None."""
        total, world = len(self._reader), self._rank.world_size
        per_rank = -(-total // world)
        numbers = [self._rank.rank + world * index for index in range(per_rank)]
        found: list[tuple[int, Any, Any]] = []
        loss_sum = 0.0
        self._model.eval()
        with torch.no_grad():
            for first in range(0, per_rank, self._batch_size):
                part = numbers[first : first + self._batch_size]
                batch = to_device(collate([self._reader[number % total] for number in part]), self._device)
                found += zip(part, self._model.detect(batch), truths(batch), strict=True)
                # Repeated samples stand last: the loss is taken of those before them.
                real = sum(number < total for number in part)
                loss = self._model({key: value[: max(real, 1)] for key, value in batch.items()})
                loss_sum += real * float(loss)
        self._model.train()
        gathered: list[Any] = [None] * world
        distributed.all_gather_object(gathered, (loss_sum, found))
        scenes = sorted((row for _, rows in gathered for row in rows if row[0] < total), key=lambda row: row[0])
        quality = average_precision([row[1] for row in scenes], [row[2] for row in scenes])
        return {"val_loss": sum(part for part, _ in gathered) / total, "scenes": total, **quality}
