"""Held-out scenes: the loss and how well boxes are found, over all ranks, for our own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ..data.batch import collate
from ..data.decode import Sample
from ..data.manifest import open_folder
from ..data.readers.samples import SampleReader
from ..data.skipping import BadSample, BadSamples
from ..models.driving import DrivingModel, average_precision, truths
from .config import RunConfig
from .feed import bad_samples, to_device
from .ranks import Rank


class Evaluation:
    """Called on all ranks together; every rank gets the same result.

    Rank r takes samples r, r + world, … of the held-out split, all of them whatever the world size, so that the
    result does not depend on it. Every rank runs equally many forwards, which sharded parameters need: where its
    samples are too few, or damaged and left out, others fill the batch, and their results are dropped.
    """

    def __init__(
        self, model: DrivingModel, config: RunConfig, rank: Rank, device: torch.device, bad: BadSamples | None = None
    ) -> None:
        """`bad` counts the damaged samples left out, those of all ranks; by default without records of them."""
        assert config.data is not None
        folder = Path(config.data)
        self._reader = SampleReader(folder, open_folder(folder).split("val"), model.image_size)
        self._model = model
        self._device = device
        self._rank = rank
        self._batch_size = config.micro_batch or 1
        self._bad = bad_samples(config) if bad is None else bad

    def __call__(self) -> dict[str, Any]:
        """`val_loss`, AP and recall by class and on average; a class that no scene holds has None.

        `scenes` counts those used. Raises `DataError` on all ranks when they left out more than is allowed.
        """
        total, world = len(self._reader), self._rank.world_size
        per_rank = -(-total // world)
        numbers = [self._rank.rank + world * index for index in range(per_rank)]
        found: list[tuple[int, Any, Any]] = []
        damaged: list[BadSample] = []
        loss_sum = 0.0
        self._model.eval()
        with torch.no_grad():
            for first in range(0, per_rank, self._batch_size):
                used, samples = self._read(numbers[first : first + self._batch_size], damaged)
                batch = to_device(collate(samples), self._device)
                found += list(zip(used, self._model.detect(batch), truths(batch), strict=False))
                # What fills the batch stands last: the loss is taken of those before it.
                loss = self._model({key: value[: max(len(used), 1)] for key, value in batch.items()})
                loss_sum += len(used) * float(loss)
        self._model.train()
        gathered: list[Any] = [None] * world
        distributed.all_gather_object(gathered, (loss_sum, found, damaged))
        # Every rank counts those of all, so that all stop alike where there are too many.
        self._bad.add(bad for _, _, part in gathered for bad in part)
        scenes = sorted((row for _, rows, _ in gathered for row in rows), key=lambda row: row[0])
        quality = average_precision([row[1] for row in scenes], [row[2] for row in scenes])
        return {"val_loss": sum(part for part, _, _ in gathered) / len(scenes), "scenes": len(scenes), **quality}

    def _read(self, numbers: list[int], damaged: list[BadSample]) -> tuple[list[int], list[Sample]]:
        """(which of `numbers` are used, their samples followed by as many others as make up `len(numbers)`)."""
        total = len(self._reader)
        used: list[int] = []
        samples: list[Sample] = []
        others: list[Sample] = []
        for number in numbers:
            met: list[BadSample] = []
            sample = self._reader.readable(number % total, total if self._bad.budget else 0, met)
            damaged += met
            if met or number >= total:
                others.append(sample)
            else:
                used.append(number)
                samples.append(sample)
        return used, samples + others
