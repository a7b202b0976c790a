"""What a trained model must beat on held-out scenes: the untrained one, and the best answer that ignores its input."""

from __future__ import annotations

from pathlib import Path

import torch
from scalelab.data.batch import collate
from scalelab.data.generate import ensure_dataset
from scalelab.data.manifest import open_folder
from scalelab.data.readers.samples import SampleReader
from scalelab.data.spec import DatasetSpec
from scalelab.models.driving import average_precision, build_model, constant_predictor, truths
from scalelab.models.presets import load_preset

PRESET = "tiny"
BATCH = 8


def batches(folder: Path, split: str, size: tuple[int, int]) -> list[dict[str, torch.Tensor]]:
    """All samples of a split, in file order."""
    reader = SampleReader(folder, open_folder(folder).split(split), size)
    numbers = range(len(reader))
    return [collate([reader[i] for i in numbers[first : first + BATCH]]) for first in range(0, len(reader), BATCH)]


def main() -> None:
    folder = ensure_dataset(DatasetSpec(**load_preset(PRESET).dataset))
    torch.manual_seed(0)
    model = build_model(PRESET).eval()
    held_out = batches(folder, "val", model.image_size)
    wanted = [scene for batch in held_out for scene in truths(batch)]
    seen = [scene for batch in batches(folder, "train", model.image_size) for scene in truths(batch)]
    constant = constant_predictor(seen)
    answers = {
        "untrained": [found for batch in held_out for found in model.detect(batch)],
        "constant": [constant] * len(wanted),
    }
    for name, detections in answers.items():
        figures = average_precision(detections, wanted)
        print(f"{name:10}", "  ".join(f"{key} {'-' if v is None else f'{v:.3f}'}" for key, v in figures.items()))


if __name__ == "__main__":
    main()
