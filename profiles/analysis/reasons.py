"""Why a field of the summary is null: every null is entered with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable

# Called with a field's dotted path and the reason why it is null.
Null = Callable[[str, str], None]


def nulls(prefix: str, names: Iterable[str], why: str, null: Null) -> dict[str, None]:
    """The fields `names` below `prefix`, all null for the same reason."""
    names = tuple(names)
    for name in names:
        null(f"{prefix}.{name}", why)
    return dict.fromkeys(names)
