"""scalelab: run one model under every data-parallel strategy and see what each step costs."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Probe", "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # Imports torch, which the command must not wait for.
    if name == "Probe":
        from .launch.attach import Probe  # pyright: ignore[reportMissingImports] (this folder is `scalelab`)

        return Probe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
