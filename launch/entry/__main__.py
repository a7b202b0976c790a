"""`python -m scalelab` and the `scalelab` script."""

from __future__ import annotations

from .launch.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
