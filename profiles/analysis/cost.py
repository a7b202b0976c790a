"""The part of the summary that says what samples cost: device-hours, money, energy, each by cause.

Device-hours per million samples = ranks x seconds of a step / samples of a step / 3600 x 10^6; an hour of a CPU rank is
not an hour of a GPU. Money is hours x price, and joules x tariff; docs/cost.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .by_cause import by_cause, leaves, total_seconds
from .load import Run
from .parity import PARITY
from .prices import Given, Price, Rates, given_price
from .reasons import Null
from .whole_run import whole_run

MILLION, SECONDS_PER_HOUR, JOULES_PER_KWH = 1e6, 3600.0, 3.6e6
USD = "usd_per_million_samples"


def device_hours(world_size: int, seconds: float, samples: float) -> float:
    """Hours of a device for a million samples, when `world_size` of them make `samples` in `seconds`."""
    return world_size * seconds / samples / SECONDS_PER_HOUR * MILLION


def cost(run: Run, summary: Mapping[str, Any], samples: float | None, rates: Rates, null: Null) -> dict[str, Any]:
    """The `cost` part. `summary` holds the parts of the summary that are made before; `samples` is those of a step."""
    found = {
        "device_kind": run.run_json["device_name"],
        **_hours(summary, samples, null),
        "by_cause_total": None,
        "whole_run": whole_run(run, null),
        "by_cause": by_cause(run, summary, null),
    }
    if (tree := found["by_cause"]) is None:
        null("cost.by_cause_total", "the phases of a step are not known")
    else:
        seconds = total_seconds(tree)
        hours = None if samples is None else device_hours(summary["world_size"], seconds, samples)
        if hours is None:
            null("cost.by_cause_total.device_hours_per_million_samples", NOT_COUNTED)
        found["by_cause_total"] = {"seconds_per_step": seconds, "device_hours_per_million_samples": hours}
    return found | priced(found, summary["utilization"], rates, null)


NOT_COUNTED = "samples were not counted"


def _hours(summary: Mapping[str, Any], samples: float | None, null: Null) -> dict[str, Any]:
    seconds, on_gpu = summary["step_seconds"], summary["device"] == "cuda"
    names = ("device_hours_per_million_samples", "device_hours_ci95", "gpu_hours_per_million_samples")
    found: dict[str, Any] = dict.fromkeys(names)
    if seconds["mean"] is None or samples is None:
        why = NOT_COUNTED if samples is None else summary["reasons"]["step_seconds.mean"]
        for name in names:
            null(f"cost.{name}", why)
    else:
        found[names[0]] = hours = device_hours(summary["world_size"], seconds["mean"], samples)
        found[names[2]] = hours if on_gpu else None
        if seconds["ci95"] is None:
            null("cost.device_hours_ci95", "the step has no interval")
        else:
            found[names[1]] = [device_hours(summary["world_size"], each, samples) for each in seconds["ci95"]]
    if not on_gpu:
        null("cost.gpu_hours_per_million_samples", "the run used no GPU")
    return found


def priced(cost: Mapping[str, Any], utilization: Mapping[str, Any], rates: Rates, null: Null) -> dict[str, Any]:
    """The money in `cost`, whose hours and shares are there: hours x price, energy x tariff."""
    hour, hours = rates.hour, cost["device_hours_per_million_samples"]
    found: dict[str, Any] = {"usd_per_gpu_hour": hour.usd, "price_source": hour.source if hour.usd else None}
    if hour.usd is None:
        null("cost.usd_per_gpu_hour", hour.source)
        null("cost.price_source", hour.source)

    def money(path: str, amount: float | None) -> float | None:
        if amount is None or hour.usd is None:
            null(f"cost.{path}", hour.source if hour.usd is None else "its device-hours are not known")
            return None
        return amount * hour.usd

    found[USD] = money(USD, hours)
    found["usd_ci95"] = None
    if found[USD] is None or cost["device_hours_ci95"] is None:
        null("cost.usd_ci95", hour.source if hour.usd is None else "device-hours have no interval")
    else:
        found["usd_ci95"] = [each * hour.usd for each in cost["device_hours_ci95"]]
    found["spot"] = _spot(rates.spot, hours, null)
    found |= _energy(utilization["joules_per_sample"], rates.usd_per_kwh, null)
    if (whole := cost["whole_run"]) is not None:
        usd = {name: money(f"whole_run.{name}", whole[of]) for name, of in WHOLE_RUN.items()}
        found["whole_run"] = {**whole, **usd}
    return found | _by_cause(cost, money, null)


WHOLE_RUN = {"usd": "device_hours", USD: "device_hours_per_million_samples"}


Money = Callable[[str, float | None], float | None]


def _by_cause(cost: Mapping[str, Any], money: Money, null: Null) -> dict[str, Any]:
    tree, total = cost["by_cause"], cost["by_cause_total"]
    if tree is None:
        null("cost.by_cause_leaves", "the phases of a step are not known")
        return {"by_cause_leaves": None}
    hours = total["device_hours_per_million_samples"]

    def node(path: str, row: Mapping[str, Any]) -> dict[str, Any]:
        usd = money(f"{path}.{USD}", None if hours is None else hours * row["share"])
        parts = {name: part and node(f"{path}.{name}", part) for name, part in row.items() if isinstance(part, Mapping)}
        return {**row, USD: usd, **parts}

    found = {name: row and node(f"by_cause.{name}", row) for name, row in tree.items()}
    rows = [
        {"cause": name, "seconds": row["seconds"], "share": row["share"], USD: row[USD]} for name, row in leaves(found)
    ]
    if any(row[USD] is None for row in rows):
        null(f"cost.by_cause_leaves.{USD}", f"see cost.by_cause_total.{USD}")
    return {
        "by_cause": found,
        "by_cause_total": {**total, USD: money(f"by_cause_total.{USD}", hours)},
        "by_cause_leaves": sorted(rows, key=lambda row: -row["share"]),
    }


def _spot(price: Price, hours: float | None, null: Null) -> dict[str, Any] | None:
    """What it would cost on machines that may be taken away."""
    if price.usd is None or hours is None:
        null("cost.spot", price.source if price.usd is None else "device-hours are not known")
        return None
    return {"usd_per_gpu_hour": price.usd, "price_source": price.source, USD: hours * price.usd}


def _energy(joules: float | None, tariff: float | None, null: Null) -> dict[str, Any]:
    """Of the cards alone, by their own counters: not of the host, and not of cooling."""
    found = {"usd_per_kwh": tariff, "energy_usd_per_million_samples": None}
    if tariff is None:
        null("cost.usd_per_kwh", "no tariff was given: --usd-per-kwh gives one")
    if joules is None or tariff is None:
        lacking = "the tariff is" if joules is not None else "joules are"
        null(
            "cost.energy_usd_per_million_samples",
            f"{lacking} not known: see {'cost.usd_per_kwh' if joules is not None else 'utilization.joules_per_sample'}",
        )
    else:
        found["energy_usd_per_million_samples"] = joules * MILLION / JOULES_PER_KWH * tariff
    return found


def usd_to_target(quality: Mapping[str, Any], world_size: int, hour: Price, null: Null) -> float | None:
    """Seconds from the first step's begin to the end of the evaluation that met the target, on all devices, x price."""
    if quality["seconds_to_target"] is None or hour.usd is None:
        null("quality.usd_to_target", "see quality.seconds_to_target" if hour.usd is not None else hour.source)
        return None
    return quality["seconds_to_target"] * world_size / SECONDS_PER_HOUR * hour.usd


GIVEN = ("cost.usd_per_gpu_hour", "cost.price_source", "cost.usd_per_kwh")
MONEY = ("usd", "price_source", "spot", "energy_usd")


def reprice(summary: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """`summary` with its money computed again at the prices `given`, and nothing else of it changed."""
    reasons = {path: why for path, why in summary["reasons"].items() if not _of_money(path)}
    hours = reasons.get("cost.device_hours_per_million_samples", "")
    withheld = hours if hours.startswith(PARITY) else None

    def null(path: str, why: str) -> None:
        reasons[path] = why if withheld is None or path in GIVEN else withheld

    rates = _rates_of(summary, given)
    money = priced(summary["cost"], summary["utilization"], rates, null)
    usd = usd_to_target(summary["quality"], summary["world_size"], rates.hour, null)
    return {
        **summary,
        "cost": {**summary["cost"], **money},
        "quality": {**summary["quality"], "usd_to_target": usd},
        "reasons": dict(sorted(reasons.items())),
    }


def _of_money(path: str) -> bool:
    return path.startswith(("cost.", "quality.")) and path.rsplit(".", 1)[-1].startswith(MONEY)


def _rates_of(summary: Mapping[str, Any], given: Given) -> Rates:
    """The prices in a summary, those that were given in their place."""
    cost, reasons = summary["cost"], summary["reasons"]
    hour = Price(cost["usd_per_gpu_hour"], cost["price_source"] or reasons.get("cost.usd_per_gpu_hour", "not known"))
    if given.usd_per_gpu_hour is not None:
        hour = given_price(given.usd_per_gpu_hour, "to report", summary["device"])
    spot = cost["spot"] or {"usd_per_gpu_hour": None, "price_source": reasons.get("cost.spot", "not known")}
    tariff = cost["usd_per_kwh"] if given.usd_per_kwh is None else given.usd_per_kwh
    return Rates(hour=hour, spot=Price(spot["usd_per_gpu_hour"], spot["price_source"]), usd_per_kwh=tariff)
