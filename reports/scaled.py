"""Numbers for the terminal: in the unit that fits, never with an exponent. Computes nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

_TIMES = ((3600.0, "h", 5400.0), (60.0, "min", 90.0), (1.0, "s", 1.0), (1e-3, "ms", 1e-3), (1e-6, "µs", 0.0))
_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def number(value: float) -> str:
    """Four figures, thousands apart, and from a million on with a prefix: 0.00012, 8.757, 25,440, 1.47 M."""
    size = abs(value)
    if size == 0 or not math.isfinite(size):
        return f"{value:g}"
    for factor, prefix in _LARGE:
        if size >= factor:
            return f"{value / factor:.3g} {prefix}" if size < 1000 * factor else f"{value / factor:,.0f} {prefix}"
    decimals = max(0, 3 - math.floor(math.log10(size)))
    text = f"{value:,.{decimals if size >= 0.01 else decimals - 2}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def rough(value: float) -> str:
    """Three figures, as ends of intervals have."""
    return number(float(f"{value:.3g}"))


def time(seconds: float) -> str:
    """170.3 ms, 10.04 s, 3.2 min."""
    seconds = float(f"{seconds:.4g}")  # 999.99 ms is 1 s
    return f"{number(seconds / _unit(seconds)[0])} {_unit(seconds)[1]}"


def times(bounds: Sequence[float]) -> str:
    """Both ends in the unit of the larger: [0.9, 1.2] s."""
    factor, unit = _unit(max(map(abs, bounds)))
    return f"{pair([each / factor for each in bounds])} {unit}"


def signed_time(seconds: float) -> str:
    """With its sign: +667.8 ms."""
    return f"{'-' if seconds < 0 else '+'}{time(abs(seconds))}"


def pair(bounds: Sequence[float]) -> str:
    """[0.9, 1.2]"""
    return f"[{', '.join(map(rough, bounds))}]"


def _unit(seconds: float) -> tuple[float, str]:
    size = abs(seconds)
    return next((factor, unit) for factor, unit, least in _TIMES if size >= least)
