"""The parts of the summary that say what a sample takes to compute, and which share of the devices' peak that was.

MFU = operations of forward and backward, padding included / (time x peak of the devices); HFU adds what activation
checkpointing computed again (Chowdhery et al. 2022, "PaLM", appendix B). Time is the mean measured step.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..used import CountedFlops, CountedShapes, FlopsRecord
from .load import Run
from .reasons import Null, nulls

EFFICIENCY = ("mfu", "hfu", "useful_fraction", "peak")
COUNTED = ("flops_per_sample", "flops_by_branch", "recomputed_flops_per_sample", "uncounted_operators")
CUT = ("useful_flops_per_sample", "padding")


def model(run: Run, null: Null) -> dict[str, Any]:
    """The model's size, and operations per sample: means over the measured micro-batches of all ranks."""
    known = run.run_json.get("model")
    if known is None:
        null("model.parameters", "the run ended before the model was built")
    return {
        "name": known["name"] if known else run.run_json["config"]["model"],
        "parameters": known["parameters"] if known else None,
        **_flops(run, null),
    }


def _flops(run: Run, null: Null) -> dict[str, Any]:
    record = _record(run)
    if record is None or not record.counted or record.uncounted is None:
        return nulls("model", (*COUNTED, *CUT), _why_not_counted(run, record), null)
    size = record.samples_per_micro_batch
    by_branch = {
        name: _mean(record.counted, [each.by_branch[name] for each in record.counted]) / size
        for name in record.counted[0].by_branch
    }
    useful = record.without_padding
    if useful is None:
        null("model.useful_flops_per_sample", record.reasons["without_padding"])
    padding = record.padding
    if padding is None:
        null("model.padding", record.reasons["padding"])
    else:
        padding = {
            mask: {"real": rows.real, "there": rows.there, "share_real": rows.real / rows.there}
            for mask, rows in padding.items()
        }
    return {
        "flops_per_sample": _mean(record.counted, [_total(each) for each in record.counted]) / size,
        "flops_by_branch": by_branch,
        "recomputed_flops_per_sample": _mean(record.counted, [each.recomputed for each in record.counted]) / size,
        "useful_flops_per_sample": None if useful is None else _total(useful) / size,
        "padding": padding,
        "uncounted_operators": record.uncounted,
    }


def _record(run: Run) -> FlopsRecord | None:
    return next((rank.flops for rank in run.ranks if rank.flops), None)


def _why_not_counted(run: Run, record: FlopsRecord | None) -> str:
    if record is not None:
        return record.reasons["counted"]
    if run.own_loop:
        return "in a job's own loop operations are not counted"
    if run.run_json["config"]["probe"] == "off":
        return "operations are not counted with --probe off"
    return "the run ended before its operations were counted"


def _total(flops: CountedFlops) -> int:
    return sum(flops.by_branch.values())


def _mean(counted: Sequence[CountedShapes], values: Sequence[int]) -> float:
    """The mean of `values` over micro-batches."""
    total = sum(each.micro_batches * value for each, value in zip(counted, values, strict=True))
    return total / sum(each.micro_batches for each in counted)


def efficiency(
    run: Run, model: Mapping[str, Any], step_seconds: Mapping[str, Any], samples: float | None, null: Null
) -> dict[str, Any]:
    """MFU, HFU and the useful share of what was computed, from what `model` said of operations; and the peak."""
    found: dict[str, Any] = dict.fromkeys(EFFICIENCY)
    found["peak"], why = peak(run)
    if found["peak"] is None:
        null("utilization.peak", why)
    flops, useful = model["flops_per_sample"], model["useful_flops_per_sample"]
    if flops is None:
        why = _why_not_counted(run, _record(run))
    elif found["peak"] is None:
        why = f"no peak to hold it against: {why}"
    elif step_seconds["mean"] is None or samples is None:
        why = run.why_no_step
    else:
        rate = samples / step_seconds["mean"]
        limit = found["peak"]["flops_per_second"] * found["peak"]["devices"]
        done = (flops + model["recomputed_flops_per_sample"]) * rate
        if done <= limit:
            found["mfu"], found["hfu"] = flops * rate / limit, done / limit
        else:
            # Such as matrix products of a dtype that a processor emulates, where convolutions are faster.
            why = (
                f"{done:.3g} FLOP/s were computed, more than the {limit:.3g} of {found['peak']['source']}: that is no "
                "peak of what this model computes"
            )
    if found["mfu"] is None:
        nulls("utilization", ("mfu", "hfu"), why, null)
    if flops and useful is not None:
        found["useful_fraction"] = useful / flops
    else:
        null(
            "utilization.useful_fraction",
            "no operation was counted" if flops == 0 else "see model.useful_flops_per_sample",
        )
    return found


def peak(run: Run) -> tuple[dict[str, Any] | None, str]:
    """Dense matrix products a second that one device can do in the run's dtype of compute, from the catalogue, else
    from the machine's calibration; or None, and why. A CPU's are those of all cores of a host, which its ranks share.
    """
    facts, on_gpu = run.run_json, run.run_json["config"]["device"] == "cuda"
    dtype = (facts["precision"] or {}).get("compute")
    if dtype is None:
        return None, "the dtype of compute is not known"
    name = facts["device_name"]
    devices = facts["world_size"] if on_gpu else facts["config"].get("nodes") or 1
    listed = catalogue().get(name, {}) if on_gpu else {}
    if listed.get(dtype):
        value, source = float(listed[dtype]) * 1e12, listed["source"]
    elif run.calibration is not None and dtype in run.calibration.matmul_flops_per_second:
        value = run.calibration.matmul_flops_per_second[dtype].median
        source = f"measured, {run.calibration.label}"
    else:
        listed_not = f"{name} has no {dtype} peak in the catalogue" if on_gpu else "a processor is in no catalogue"
        missing = "the calibration lacks it" if run.calibration else "this run had no calibration"
        return None, f"{listed_not}, and {missing}: scalelab doctor --calibrate measures it"
    return {"flops_per_second": value, "devices": devices, "dtype": dtype, "source": source}, ""


@functools.cache
def catalogue() -> dict[str, dict[str, str]]:
    """Data-sheet peaks by the name that CUDA gives a device: dense TFLOP/s by dtype as text, empty where unknown, and
    `source`. Names are whole: another form of a card, or a part of one (MIG), has another peak."""
    found = {}
    with Path(__file__).with_name("gpu_peaks.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            peaks = {key.removesuffix("_tflops"): value for key, value in row.items() if key != "device_names"}
            found |= dict.fromkeys(row["device_names"].split("|"), peaks)
    return found
