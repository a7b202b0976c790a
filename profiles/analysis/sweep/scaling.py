"""How throughput grows with the world size, what of it is lost and to which cause, and where that leads.

Speed-up is the ratio of samples per second to that at the smallest world size N0; efficiency = speed-up x N0 / N. With
the same global batch (strong scaling) that is the ratio of step times; with the same batch per rank (weak scaling) it
is Gustafson's scaled efficiency.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...sweepfolder import SweepPlan
from ..telling import WELL_ABOVE_ONE, WIDEST, tells, too_few
from . import fits
from .cells import HOURS, ONE_RUN, CellResult, held
from .lost import lost

COST_RATIO = 2.0
CURVE_REACHES = 4
"""Times the largest world size that was fitted."""
SAME = ("checkpointing", "engine", "compile", "optimizer", "bucket_mb", "overlap", "accumulation_sync")


def series(results: Sequence[CellResult], plan: SweepPlan, asked: dict[str, float | None]) -> list[dict[str, Any]]:
    """One for each strategy, precision and other options that cells differ in; cells that were measured."""
    groups: dict[tuple[str, ...], list[CellResult]] = {}
    for each in results:
        config = each.cell.config
        key = (each.cell.strategy, each.cell.precision, *(str(config.get(name)) for name in SAME))
        groups.setdefault(key, []).append(each)
    names = _names(list(groups))
    return [
        _series(name, sorted(group, key=lambda each: each.cell.world_size), plan, asked)
        for name, group in zip(names, groups.values(), strict=True)
    ]


def _names(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """Strategy and precision, and each other option that series of the same two differ in."""
    found = []
    for strategy, precision, *options in keys:
        alike = [key[2:] for key in keys if key[:2] == (strategy, precision)]
        told = [
            f"{name} {value}"
            for name, value, values in zip(SAME, options, zip(*alike, strict=True), strict=True)
            if len(set(values)) > 1
        ]
        found.append(", ".join([f"{strategy} {precision}", *told]))
    return found


def _series(name: str, group: Sequence[CellResult], plan: SweepPlan, asked: dict[str, float | None]) -> dict[str, Any]:
    base, reasons = group[0], {}
    found: dict[str, Any] = {
        "name": name,
        "strategy": base.cell.strategy,
        "precision": base.cell.precision,
        "base_world_size": base.cell.world_size,
        "points": [],
        "remarks": [],
        "losses": None,
        "fits": {"amdahl": None, "usl": None},
        "curve": None,
        "curve_of": None,
        "extrapolated_from_world_size": None,
        "affordable": None,
        "reasons": reasons,
    }
    if (why := _unlike(group, plan)) is not None:
        reasons |= dict.fromkeys(("losses", "fits.amdahl", "fits.usl", "curve", "affordable"), why)
        found["points"] = [_point(each, None) for each in group]
        return found
    found["points"] = [_point(each, base) for each in group]
    found["remarks"] = _remarks(found["points"], base.cell.world_size)
    found["losses"] = [lost(before, after) for before, after in itertools.pairwise(group)]
    if len(group) == 1:
        reasons["losses"] = "one world size was measured"
    return found | _fitted(group, plan, asked, reasons)


def _unlike(group: Sequence[CellResult], plan: SweepPlan) -> str | None:
    """Why the cells' throughputs are not those of one law."""
    if len({each.cell.world_size for each in group}) < len(group):
        return "several of its cells have the same world size"
    strong = plan.scaling == "strong"
    batches = [each.cell.global_batch for each in group]
    per_rank = [(each.cell.micro_batch or 0) * each.cell.grad_accumulation for each in group]
    if len(set(batches if strong else per_rank)) > 1:
        what = "global batch" if strong else "batch per rank"
        return f"its cells differ in {what}, so this is not {plan.scaling} scaling"
    return None


def _point(each: CellResult, base: CellResult | None) -> dict[str, Any]:
    row, reasons = each.row, {}
    world = each.cell.world_size
    found: dict[str, Any] = dict.fromkeys(("speed_up", "efficiency", "cost_ratio"))
    if base is None:
        reasons |= dict.fromkeys((*found, "ideal_speed_up"), "its cells are not of one law")
    elif base is each:
        found = {name: {"mean": 1.0, "ci95": None} for name in found}
        reasons |= {f"{name}.ci95": "the base of the series" for name in found}
    else:
        found["speed_up"] = held(each, base, "samples_per_second")
        found["efficiency"] = _scaled(found["speed_up"], base.cell.world_size / world)
        found["cost_ratio"] = held(each, base, HOURS)
        if found["speed_up"]["ci95"] is None:
            reasons |= {f"{name}.ci95": "it takes two runs of this cell and of the base" for name in found}
        elif not tells(found["speed_up"]["ci95"]):
            reasons |= {f"{name}.ci95": too_few() for name in found}
            found = {name: {**value, "ci95": None} for name, value in found.items()}
    return {
        "cell": each.cell.name,
        "world_size": world,
        "global_batch": each.cell.global_batch,
        "ideal_speed_up": None if base is None else world / base.cell.world_size,
        "oversubscribed": row["oversubscribed"],
        "fitted": not row["oversubscribed"] and base is not None,
        "above_ideal": found["efficiency"] is not None and found["efficiency"]["mean"] > WELL_ABOVE_ONE,
        "samples_per_second": row["samples_per_second"],
        **found,
        "comm_share": row["comm_share"],
        "peak_bytes": row["peak_bytes"],
        "reasons": reasons,
    }


def _remarks(points: Sequence[dict[str, Any]], base: int) -> list[str]:
    """On points that scale better than they can."""
    above = [point for point in points if point["above_ideal"]]
    if not above:
        return []
    sizes = ", ".join(f"{point['efficiency']['mean']:.0%} on {point['world_size']} ranks" for point in above)
    ranks = f"{base} rank{'s' * (base != 1)}"
    told = (
        f"an efficiency of {sizes} is more than ranks can give: the run on {ranks}, which it is held against, was "
        "disturbed or differs, and has to be made again before anything follows"
    )
    return [told]


def _scaled(value: dict[str, Any], factor: float) -> dict[str, Any]:
    interval = value["ci95"]
    return {"mean": value["mean"] * factor, "ci95": None if interval is None else [each * factor for each in interval]}


def _fitted(
    group: Sequence[CellResult], plan: SweepPlan, asked: dict[str, float | None], reasons: dict[str, str]
) -> dict[str, Any]:
    """The fits, and what they say beyond what was measured."""
    # An hour is a number of seconds: the law is the same in device-hours.
    by_world = {each.cell.world_size: each.values(HOURS) for each in group if not each.row["oversubscribed"]}
    left_out = len(group) - len(by_world)
    few = "one world size is" if len(by_world) == 1 else f"{len(by_world)} world sizes are"
    why = f"{few} too few" + (f" ({left_out} oversubscribed, never fitted)" if left_out else "")
    amdahl = usl = None
    if plan.scaling == "weak":
        reasons["fits.amdahl"] = "Amdahl's law is of a fixed amount of work; this is weak scaling"
    elif len(by_world) < fits.AMDAHL_TERMS:
        reasons["fits.amdahl"] = f"{why}: it takes {fits.AMDAHL_TERMS}"
    else:
        amdahl = fits.fit(by_world, fits.AMDAHL_TERMS)
    if len(by_world) < fits.USL_TERMS:
        reasons["fits.usl"] = f"{why}: it takes {fits.USL_TERMS}"
    else:
        usl = fits.fit(by_world, fits.USL_TERMS)
    found: dict[str, Any] = {
        "fits": {
            "amdahl": None if amdahl is None else _amdahl(amdahl, reasons),
            "usl": None if usl is None else _usl(usl, reasons),
        }
    }
    used = usl or amdahl
    if used is None:
        reasons |= dict.fromkeys(("curve", "affordable"), why)
        return found
    base, price = group[0].cell.world_size, _price(group)
    return found | {
        "curve": _curve(used, base),
        "curve_of": "usl" if used is usl else "amdahl",
        "extrapolated_from_world_size": used.world_sizes[-1],
        "affordable": _affordable(used, base, asked, price, reasons),
    }


def _price(group: Sequence[CellResult]) -> float | None:
    found = {summary["cost"]["usd_per_gpu_hour"] for each in group for summary in each.summaries}
    return found.pop() if len(found) == 1 else None


def _told(used: fits.Fit) -> dict[str, Any]:
    return {
        "world_sizes": used.world_sizes,
        "residual": used.residual,
        "degrees_of_freedom": used.degrees_of_freedom,
    }


def _value(used: fits.Fit, of: fits.OfTerms, path: str, reasons: dict[str, str]) -> dict[str, Any]:
    interval = used.interval(of)
    # A serial fraction of 1 is no speed-up at all: an interval that reaches from there to beyond 10 tells nothing.
    low, high = interval or (None, None)
    wide = low is None or high is None or high - low > WIDEST
    if wide:
        reasons[f"{path}.ci95"] = ONE_RUN if interval is None else too_few()
    return {"value": used.value(of), "ci95": None if wide else interval}


def _amdahl(used: fits.Fit, reasons: dict[str, str]) -> dict[str, Any]:
    return {**_told(used), "serial_fraction": _value(used, fits.contention, "fits.amdahl.serial_fraction", reasons)}


def _usl(used: fits.Fit, reasons: dict[str, str]) -> dict[str, Any]:
    place, largest = used.value(fits.knee), used.world_sizes[-1]
    found = None
    if place is not None:
        found = {
            "world_size": place,
            "ci95": used.interval(fits.knee),
            "extrapolated": place > largest,
            "from_world_size": largest,
        }
    else:
        reasons["fits.usl.knee"] = "no coherency cost was found: by the law throughput rises for good"
    return {
        **_told(used),
        "contention": _value(used, fits.contention, "fits.usl.contention", reasons),
        "coherency": _value(used, fits.coherency, "fits.usl.coherency", reasons),
        "knee": found,
    }


def _curve(used: fits.Fit, base: int) -> list[dict[str, Any]]:
    """Speed-up over the base by the law: at powers of two times it, and at what was measured."""
    largest = used.world_sizes[-1]
    sizes = {base * 2**power for power in range(12) if base * 2**power <= CURVE_REACHES * largest}
    rows = []
    for size in sorted(sizes | set(used.world_sizes)):

        def speed_up(terms: np.ndarray, size: int = size) -> np.ndarray:
            return fits.cost(terms, base) / fits.cost(terms, size) * size / base

        reached = used.value(speed_up)
        assert reached, "a sample costs something at every world size"
        rows.append(
            {
                "world_size": size,
                "speed_up": reached,
                "ci95": used.interval(speed_up),
                "cost_ratio": size / base / reached,
                "extrapolated": size > largest,
            }
        )
    return rows


def _affordable(
    used: fits.Fit, base: int, asked: dict[str, float | None], price: float | None, reasons: dict[str, str]
) -> dict[str, Any] | None:
    """The largest world size at which a sample costs at most what was asked, by the law."""
    usd, times = asked["usd_per_million_samples"], asked["cost_ratio"] or COST_RATIO
    if usd is not None and price is None:
        reasons["affordable"] = "the runs have no common price, so none can be asked in USD"
        return None

    def limit(terms: np.ndarray) -> np.ndarray:
        hours = usd / price if usd is not None and price is not None else times * fits.cost(terms, base)
        return fits.affordable(terms, hours)

    said = f"at most {times:g} times the cost per sample at {base} rank{'s' if base > 1 else ''}"
    if usd is not None:
        said = f"at most {usd:g} USD per million samples"
    place, largest = used.value(limit), used.world_sizes[-1]
    if place is None:
        reasons["affordable.world_size"] = "no limit: by the law a sample never costs that much"
    elif place < 1:
        reasons["affordable.world_size"] = "none: by the law it costs more on any number of ranks"
    reached = place is not None and place >= 1
    interval = used.interval(limit) if reached else None
    return {
        "asked": said,
        "cost_ratio": None if usd is not None else times,
        "usd_per_million_samples": usd,
        "world_size": math.floor(place + 1e-9) if place is not None and reached else None,
        "ci95": None if interval is None else [None if each is None else math.floor(each + 1e-9) for each in interval],
        "extrapolated": place is None or not used.world_sizes[0] <= place <= largest,
        "from_world_size": largest if place is None or place > largest else used.world_sizes[0],
    }
