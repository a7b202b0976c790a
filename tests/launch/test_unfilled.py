"""A model looked at without its weights has the shape that it has with them."""

from __future__ import annotations

import pytest
import torch
from scalelab.launch.build import build, shape_of, unfilled
from scalelab.launch.setting import Setting
from scalelab.models.contract import load_model


@pytest.mark.parametrize("name", ["nano", "examples/byte_gpt.py"])
def test_what_is_not_filled_has_the_same_shape(name: str) -> None:
    source, setting = load_model(name, {}), Setting(world_size=1, device="cpu")
    with torch.device("meta"), unfilled():
        looked_at, blocks = build(source, setting, 0)
    real, real_blocks = build(source, setting, 0)
    assert all(parameter.is_meta for parameter in looked_at.parameters())
    assert shape_of(looked_at, blocks) == shape_of(real, real_blocks)


def test_what_has_data_is_filled_all_the_same() -> None:
    with unfilled():
        weight = torch.nn.init.constant_(torch.empty(3), 2.0)
        torch.nn.init.normal_(drawn := torch.zeros(3))
        kept = torch.zeros(3).fill_(4.0)
    assert (weight == 2.0).all()
    assert (drawn != 0.0).all()
    assert (kept == 4.0).all()
