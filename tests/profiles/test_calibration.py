"""What a calibration says between and beyond the sizes that were measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scalelab.profiles.calibration import BusyCores, Calibration, Spread, Timing, collective_seconds

SECONDS = {4096: 0.001, 65536: 0.002, 1048576: 0.016}


def spread(value: float) -> Spread:
    return Spread(median=value, p10=value, p90=value, count=5)


CALIBRATION = Calibration(
    name="a", made_utc="2026-01-01T00:00:00Z", host="h", device="cpu", device_name="c", cores=2, threads=2, ranks=2,
    backend="gloo", versions={}, matmul_flops_per_second={}, memory_bytes_per_second=spread(1.0),
    host_to_device_bytes_per_second=None, device_to_host_bytes_per_second=None,
    collective_seconds={"all_reduce": [Timing(payload_bytes=b, seconds=spread(s)) for b, s in SECONDS.items()]},
    wire_factor=None, run_spread=None, reasons={},
)  # fmt: skip


def test_measured_sizes_are_as_measured() -> None:
    for count, seconds in SECONDS.items():
        assert collective_seconds(CALIBRATION, "all_reduce", count) == pytest.approx(seconds)


def test_beyond_the_ends() -> None:
    """Below the smallest it is latency alone, above the largest the bytes count; an unknown kind has no time."""
    assert collective_seconds(CALIBRATION, "all_reduce", 1) == 0.001
    assert collective_seconds(CALIBRATION, "all_reduce", 1 << 24) == pytest.approx(0.256)
    assert collective_seconds(CALIBRATION, "barrier", 8) is None


@given(st.integers(1, 1 << 26), st.integers(1, 1 << 26))
def test_more_bytes_never_take_less(one: int, other: int) -> None:
    small, large = (collective_seconds(CALIBRATION, "all_reduce", count) or 0.0 for count in sorted((one, other)))
    assert small <= large * (1 + 1e-9)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50))
def test_a_spread_is_of_its_values(values: list[float]) -> None:
    found = Spread.of(values)
    assert min(values) <= found.p10 <= found.median <= found.p90 <= max(values)
    assert found.count == len(values)


def test_an_older_file_has_no_word_of_others_and_no_doubts() -> None:
    older = CALIBRATION.model_dump()
    del older["others_busy_cores"]
    found = Calibration.model_validate(older)
    assert (found.others_busy_cores, found.doubts, found.label) == (None, [], "calibration a of 2026-01-01T00:00:00Z")


@pytest.mark.parametrize(("others", "wide", "doubts"), [(0.19, 1.4, 0), (0.21, 1.4, 1), (0.19, 1.6, 1), (2.0, 4.4, 2)])
def test_what_speaks_against_a_calibration(others: float, wide: float, doubts: int) -> None:
    """More than a tenth of two cores, and a rate that spans more than half as much again; both follow its name."""
    found = CALIBRATION.model_copy(
        update={
            "others_busy_cores": BusyCores.of([0.0, others, others], cores=2),
            "matmul_flops_per_second": {"fp32": Spread(median=1e9 * wide, p10=1e9, p90=1e9 * wide, count=5)},
        }
    )
    assert len(found.doubts) == doubts
    assert found.label == "; ".join(["calibration a of 2026-01-01T00:00:00Z", *found.doubts])
    assert Calibration.model_validate_json(found.model_dump_json()) == found
