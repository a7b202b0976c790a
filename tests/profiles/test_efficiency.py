"""MFU and HFU from planted numbers: operations, time, peak; and what is said where one of them is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from scalelab.profiles.analysis.efficiency import catalogue
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import Record
from scalelab.profiles.used import CountedFlops, CountedShapes, FlopsRecord, Padding

from tests.profiles.test_calibration import CALIBRATION, spread
from tests.profiles.test_summary import explained, folder_with, run_json, silent, step

H100 = "NVIDIA H100 80GB HBM3"
# Micro-batches of 4 samples: three of 400 GFLOP and one of 800, of which 360 would do without padding.
GIGA = 10**9
FLOPS = FlopsRecord(
    samples_per_micro_batch=4,
    counted=[
        CountedShapes(by_branch={"a": 300 * GIGA, "unattributed": 100 * GIGA}, recomputed=80 * GIGA, micro_batches=3),
        CountedShapes(by_branch={"a": 700 * GIGA, "unattributed": 100 * GIGA}, recomputed=80 * GIGA, micro_batches=1),
    ],
    without_padding=CountedFlops(by_branch={"a": 310 * GIGA, "unattributed": 50 * GIGA}, recomputed=0),
    padding={"mask": Padding(real=6.0, there=8.0)},
    uncounted={"_softmax": 3},
)  # fmt: skip


def summary(
    tmp_path: Path,
    *,
    flops: FlopsRecord | None = FLOPS,
    device: str = "cuda",
    name: str = H100,
    compute: str | None = "bf16",
    calibration: dict[str, Any] | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Two ranks, two steps of 0.5 s, 4 samples a rank and step."""
    facts = run_json(2, device=device, **config)
    facts |= {"device_name": name, "precision": {"name": "x", "compute": compute}, "calibration": calibration}
    records: list[Record] = [step(0, 0.5), step(1, 0.5)]
    return summarise(load_run(folder_with(tmp_path, facts, [*records, *([flops] if flops else [])], records)))


def test_operations_of_a_sample_are_means_over_micro_batches(tmp_path: Path) -> None:
    """Weighted by how many had which shape; branches and the remainder sum to the whole."""
    model = summary(tmp_path)["model"]
    assert model["flops_per_sample"] == 500e9 / 4
    assert model["flops_by_branch"] == {"a": 100e9, "unattributed": 25e9}
    assert model["recomputed_flops_per_sample"] == 20e9
    assert model["useful_flops_per_sample"] == 90e9
    assert model["padding"] == {"mask": {"real": 6.0, "there": 8.0, "share_real": 0.75}}
    assert model["uncounted_operators"] == {"_softmax": 3}


def test_utilization_to_the_number(tmp_path: Path) -> None:
    """8 samples of 125 GFLOP in half a second are 2 TFLOP/s on two cards of 989; recompute is in HFU alone."""
    found = summary(tmp_path)["utilization"]
    assert found["mfu"] == pytest.approx(2e12 / (2 * 989e12))
    assert found["hfu"] == pytest.approx(2e12 * 145 / 125 / (2 * 989e12))
    assert found["useful_fraction"] == pytest.approx(90 / 125)
    assert {key: found["peak"][key] for key in ("flops_per_second", "devices", "dtype")} == {
        "flops_per_second": 989e12, "devices": 2, "dtype": "bf16",
    }  # fmt: skip
    assert "data sheet" in found["peak"]["source"]


@pytest.mark.parametrize(("compute", "tera"), [("fp32", 67), ("tf32", 494.5), ("bf16", 989), ("fp16", 989)])
def test_the_peak_is_that_of_the_dtype_of_compute(tmp_path: Path, compute: str, tera: float) -> None:
    assert summary(tmp_path, compute=compute)["utilization"]["peak"]["flops_per_second"] == tera * 1e12


@pytest.mark.parametrize(
    ("name", "compute"),
    [("NVIDIA H100 PCIe", "bf16"), ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "bf16"), ("Tesla T4", "bf16"), ("X9", "fp32")],
)
def test_no_peak_is_guessed(tmp_path: Path, name: str, compute: str) -> None:
    """Another form of a listed card, a part of one, a dtype that it has not, an unknown card: null, and why."""
    found = summary(tmp_path, name=name, compute=compute)
    assert [found["utilization"][key] for key in ("peak", "mfu", "hfu")] == [None, None, None]
    assert f"{name} has no {compute} peak in the catalogue" in found["reasons"]["utilization.mfu"]
    assert "doctor --calibrate" in found["reasons"]["utilization.peak"]
    assert found["utilization"]["useful_fraction"] == pytest.approx(90 / 125)


def calibrated(**rates: float) -> dict[str, Any]:
    found = {dtype: spread(rate) for dtype, rate in rates.items()}
    return CALIBRATION.model_copy(update={"matmul_flops_per_second": found}).model_dump()


def test_more_than_the_peak_is_no_share_of_it(tmp_path: Path) -> None:
    """A calibration of a dtype that the processor emulates may be far below what convolutions reach."""
    found = summary(tmp_path, name="X9", calibration=calibrated(bf16=0.5e12))
    assert (found["utilization"]["mfu"], found["utilization"]["hfu"]) == (None, None)
    assert "is no peak of what this model computes" in found["reasons"]["utilization.mfu"]
    assert found["utilization"]["peak"] is not None


def test_an_unknown_device_is_held_against_its_calibration(tmp_path: Path) -> None:
    """A card against its own rate; a processor against that of the host, which its ranks share; a listed card against
    its data sheet all the same."""
    rates = calibrated(bf16=5e12)
    card = summary(tmp_path / "card", name="X9", calibration=rates)["utilization"]
    assert card["mfu"] == pytest.approx(2e12 / (2 * 5e12))
    assert "calibration a of 2026-01-01T00:00:00Z" in card["peak"]["source"]
    cpu = summary(tmp_path / "cpu", device="cpu", calibration=rates)["utilization"]
    assert (cpu["peak"]["devices"], cpu["mfu"]) == (1, pytest.approx(2e12 / 5e12))
    listed = summary(tmp_path / "listed", calibration=rates)["utilization"]
    assert listed["peak"]["flops_per_second"] == 989e12
    other = summary(tmp_path / "other", device="cpu", compute="fp32", calibration=rates)
    assert other["utilization"]["mfu"] is None
    assert "the calibration lacks it" in other["reasons"]["utilization.peak"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"flops": None}, "the run ended before its operations were counted"),
        ({"flops": None, "probe": "off"}, "--probe off"),
        ({"flops": None, "strategy": "own", "engine": "own"}, "own loop"),
        ({"flops": msgspec.structs.replace(FLOPS, counted=None, without_padding=None, padding=None, uncounted=None,
          reasons=dict.fromkeys(("counted", "without_padding", "padding"), "it is odd"))},
         "it is odd"),
    ],
)  # fmt: skip
def test_what_was_not_counted_is_null_with_its_reason(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    found = summary(tmp_path, **options)
    for field in ("model.flops_per_sample", "model.flops_by_branch", "model.padding", "utilization.mfu"):
        assert why in found["reasons"][field], field
    assert found["utilization"]["peak"] is not None
    assert not {path for path in silent({key: found[key] for key in ("model", "utilization")})
                if not explained(path, found["reasons"])}  # fmt: skip


def test_padding_that_cannot_be_told_leaves_the_rest(tmp_path: Path) -> None:
    """Operations and MFU stay; the useful share is null with the reason."""
    told = {"without_padding": None, "padding": None, "reasons": {"without_padding": "no masks", "padding": "no masks"}}
    found = summary(tmp_path, flops=msgspec.structs.replace(FLOPS, **told))
    assert found["utilization"]["mfu"] is not None
    assert found["utilization"]["useful_fraction"] is None
    assert "no masks" in found["reasons"]["model.useful_flops_per_sample"]
    assert "utilization.useful_fraction" in found["reasons"]


def test_every_row_of_the_catalogue_has_its_source() -> None:
    """Figures are positive numbers or nothing; sixteen bits are never slower than thirty-two."""
    for name, row in catalogue().items():
        peaks = {key: float(value) for key, value in row.items() if key != "source" and value}
        assert row["source"], name
        assert all(value > 0 for value in peaks.values()), name
        assert peaks["fp16"] >= peaks.get("tf32", 0) >= 0, name
        assert peaks["fp16"] >= peaks["fp32"], name
