"""`python -m scalelab` and the `scalelab` script."""

from __future__ import annotations

from .launch.cli import main  # pyright: ignore[reportMissingImports] (this folder is `scalelab`, once installed)

__all__ = ["main"]

if __name__ == "__main__":
    main()
