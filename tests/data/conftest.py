"""A dataset of 24 + 8 tiny scenes, and copies of it that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from scalelab.data.generate import ensure_dataset
from scalelab.data.spec import DatasetSpec

SPEC = DatasetSpec(
    train_samples=24, val_samples=8, cameras=2, width=64, height=40, samples_per_shard=4, lidar_columns=64
)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_dataset(SPEC, tmp_path_factory.mktemp("data"), workers=1)


@pytest.fixture
def damaged(dataset: Path, tmp_path: Path) -> Path:
    """A copy of `dataset` to damage."""
    return Path(shutil.copytree(dataset, tmp_path / "copy [1] 'q'"))
