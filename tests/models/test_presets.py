"""Presets: found on disk, read without torch, and exact about the model they describe."""

import subprocess
import sys

import pytest
import torch
from scalelab.data.spec import DatasetSpec
from scalelab.models.driving import blocks, build_model, config_from
from scalelab.models.presets import load_preset, presets

NAMES = presets()


def test_presets_are_ordered_by_size():
    """The list runs from the smallest model to the largest, so that a front can offer it as a ladder."""
    assert NAMES == ["nano", "tiny", "small", "base", "large", "2b"]


def test_unknown_preset_names_the_nearest():
    """A typing error is answered with the list and the nearest name."""
    with pytest.raises(ValueError, match=r"'smal' is not one of .*tiny.* Did you mean 'small'"):
        load_preset("smal")


def test_presets_need_no_torch():
    """Planners read presets in an interpreter that never imports torch."""
    code = "import sys; from scalelab.models.presets import presets; presets(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_exact_and_mostly_in_blocks(name):
    """Every preset builds on the meta device with exactly the parameters that its file states."""
    with torch.device("meta"):
        model = build_model(name)
    counted = sum(p.numel() for p in model.parameters())
    assert all(p.is_meta for p in model.parameters())
    assert counted == load_preset(name).parameters
    in_blocks = sum(p.numel() for block in blocks(model) for p in block.parameters())
    assert in_blocks / counted > (0.45 if name == "nano" else 0.8)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("nano", 0, 1e5), ("tiny", 1.6e6, 2.4e6), ("small", 22e6, 28e6), ("base", 100e6, 120e6),
     ("large", 550e6, 650e6), ("2b", 1.94e9, 2.06e9)],
)  # fmt: skip
def test_sizes_are_what_the_names_promise(name, low, high):
    """Parameter counts lie in the bands that the documentation gives."""
    assert low < load_preset(name).parameters < high


@pytest.mark.parametrize("name", NAMES)
def test_dataset_table_is_a_dataset(name):
    """The dataset table is accepted by the generator and has the cameras that the model expects."""
    preset = load_preset(name)
    spec = DatasetSpec(**preset.dataset)
    assert spec.cameras == config_from(name).cameras
    assert preset.summary
