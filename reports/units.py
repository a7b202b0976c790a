"""Numbers in a person's units. Computes nothing else."""

from __future__ import annotations

from collections.abc import Sequence

UNKNOWN = "–"
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_THOUSANDS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def milliseconds(seconds: float | None) -> str:
    """Three figures at least, and no more decimals than that takes: 1,234 ms, 56.7 ms, 0.123 ms."""
    return UNKNOWN if seconds is None else f"{figures(seconds * 1e3)} ms"


def seconds(value: float | None) -> str:
    return UNKNOWN if value is None else f"{figures(value)} s"


def figures(value: float | None) -> str:
    """Three figures at least, thousands apart."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    size = abs(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{decimals}f}" if size >= 0.01 else f"{value:.2g}"


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share:.1%}"


def count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def counted(value: float, noun: str) -> str:
    """1 step, 1,000 steps."""
    return f"{value:,.0f} {noun}{'s' * (value != 1)}"


def peak_of(device: str, devices: int) -> str:
    """What a peak is that of. A CPU's is that of a host, which its ranks share."""
    if device == "cuda":
        return "that of the GPU" if devices == 1 else f"that of each of {devices} GPUs"
    return "that of all cores together" if devices == 1 else f"that of all cores of each of {devices} hosts"


def size(value: float | None) -> str:
    """Bytes in the largest binary unit that leaves at least 1."""
    if value is None:
        return UNKNOWN
    for factor, unit in _BYTES:
        if abs(value) >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f} B"


def metric(value: float | None, unit: str) -> str:
    """With the prefix that leaves at least 1."""
    if value is None:
        return UNKNOWN
    for factor, prefix in _THOUSANDS:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def usd(value: float | None) -> str:
    return UNKNOWN if value is None else f"${value:,.2f}"


def interval(bounds: Sequence[float] | None, scale: float = 1.0, unit: str = "") -> str:
    """Its bounds in brackets; nothing where there are none."""
    if bounds is None:
        return ""
    return f"[{figures(bounds[0] * scale)}, {figures(bounds[1] * scale)}]{f' {unit}' if unit else ''}"


NOT_TOLD = "not told from 0"


def told(bounds: Sequence[float] | None) -> str:
    """A warning where an interval spans 0, and nothing else."""
    return NOT_TOLD if bounds is not None and bounds[0] <= 0 <= bounds[1] else ""


def model(name: str) -> str:
    """A model's name for readers: that of a scenario's file says nothing."""
    return "the scenario's model" if name == "_subject" else name


def duration(value: float | None) -> str:
    """Seconds as hours and minutes."""
    if value is None:
        return UNKNOWN
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{value:.1f} s"
