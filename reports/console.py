"""The console for everything that is printed: a reader that leaves (`| head`, a closed terminal) ends nothing else."""

from __future__ import annotations

from typing import IO, Any

import rich.console

from .steady import Steady


class Console(rich.console.Console):
    """rich's console on a steady stream; rich's own would end the process."""

    def __init__(self, file: IO[str], **options: Any) -> None:
        super().__init__(file=Steady(file), highlight=False, **options)  # pyright: ignore[reportArgumentType]
