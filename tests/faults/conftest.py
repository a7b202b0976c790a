"""Faults planted for real: their times are noted, never asserted on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.supervised import Outcome, Timed, run_supervised


@pytest.fixture
def timed(record_property: Callable[[str, object], None]) -> Timed:
    """`run_supervised`, with the times of detection and of the clean end noted for the table of `make faults`."""

    def run(place: Path, **options: Any) -> Outcome:
        found = run_supervised(place, **options)
        record_property("detected_seconds", found.detected_seconds)
        record_property("ended_seconds", found.ended_seconds)
        return found

    return run
