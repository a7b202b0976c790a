"""From which width on an interval between runs tells nothing."""

from __future__ import annotations

from collections.abc import Sequence

WIDEST = 10.0
"""Between the ends of an interval, as a factor. Of two runs the interval of the mean reaches 9 standard deviations of a
run to each side (Student's t with one degree of freedom, over sqrt(2)), so this is met where like runs differ by more
than 13 %, as they did on a two-core virtual machine with nothing else to do. Beyond it not even the order of magnitude
is known, and ends such as [6e-07, 1.5e+08] are taken for findings."""
WELL_ABOVE_ONE = 1.25
"""Efficiency. Caches that hold a rank's smaller part may gain some percent; two single runs that are 13 % off, one to
each side, differ by a factor of 1.3. Above it the smaller run was rather disturbed, or is another."""
TOO_FEW = "too few runs to say"


def tells(interval: Sequence[float] | None) -> bool:
    """Whether it says more than an order of magnitude. Its ends are positive."""
    return interval is not None and interval[1] <= WIDEST * interval[0]


def too_few(runs: int | None = None) -> str:
    """Why an interval that does not tell is null."""
    of = "" if runs is None else f" of {runs} runs"
    return f"{TOO_FEW}: the interval{of} spans more than a factor of {WIDEST:g}"
