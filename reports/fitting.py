"""Tables that fit the terminal: fewer columns where it is narrow, never half a word."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement


class Fitting:
    """The first of `choices` whose lines need no wrapping in the width there is; the last where none does."""

    def __init__(self, *choices: RenderableType) -> None:
        self._choices = choices

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        free = options.update(max_width=10_000)
        fits = (each for each in self._choices if Measurement.get(console, free, each).maximum <= options.max_width)
        yield next(fits, self._choices[-1])
