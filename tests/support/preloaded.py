"""What ranks of tests are forked with: every library that a strategy uses, imported once."""

from __future__ import annotations

from scalelab.launch import (
    strategies,
    worker,  # noqa: F401
)
from scalelab.launch.setting import Setting

for _name in strategies.names():
    for _engine in strategies.load(_name).engines:
        strategies.load(_name).preload(Setting(world_size=1, device="cpu", engine=_engine))
