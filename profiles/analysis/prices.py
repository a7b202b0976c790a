"""What an hour of a device costs: given by the user, else from the dated catalogue gpu_prices.csv; never guessed.

The catalogue's rows are prices that others collected, with provider, tier, date, source and how far they are to be
trusted. A card's price is the median of its rows of the highest trust there is, of on-demand tiers; its spot price the
same of spot tiers. Tiers of managed products and ranges of prices are never taken.
"""

from __future__ import annotations

import csv
import functools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# RunPod's "secure" is its on-demand tier in data centres.
ON_DEMAND, SPOT = ("on-demand", "secure"), ("spot",)
TRUST = ("good", "medium", "low")


@dataclass(frozen=True, kw_only=True)
class Given:
    """Prices that the reader of a report gave: US dollars an hour of a device, and a kilowatt-hour."""

    usd_per_gpu_hour: float | None = None
    usd_per_kwh: float | None = None

    def __bool__(self) -> bool:
        return self.usd_per_gpu_hour is not None or self.usd_per_kwh is not None


@dataclass(frozen=True)
class Price:
    """US dollars an hour of a device, and where from; where `usd` is None it is not known, and `source` says why."""

    usd: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What money is computed with. A device is a GPU, or a rank on CPU."""

    hour: Price
    spot: Price
    usd_per_kwh: float | None


def rates(run_json: Mapping[str, Any], given: Given | None = None) -> Rates:
    """Prices for a run: what was given to the report, else to the run, else the catalogue's."""
    given, config = given or Given(), run_json["config"]
    on_gpu, name = config["device"] == "cuda", run_json["device_name"]
    told = config.get("usd_per_gpu_hour")
    if given.usd_per_gpu_hour is not None:
        hour = given_price(given.usd_per_gpu_hour, "to report", config["device"])
    elif told is not None:
        hour = given_price(told, "to the run", config["device"])
    elif on_gpu:
        hour = catalogued(name, ON_DEMAND)
    else:
        hour = Price(None, "no price was given, and a processor is in no catalogue: --usd-per-gpu-hour gives a rank's")
    spot = catalogued(name, SPOT) if on_gpu else Price(None, "a processor is in no catalogue")
    tariff = config.get("usd_per_kwh") if given.usd_per_kwh is None else given.usd_per_kwh
    return Rates(hour=hour, spot=spot, usd_per_kwh=tariff)


def given_price(usd: float, to: str, device: str) -> Price:
    """A price that the user gave."""
    return Price(usd, f"given {to} by --usd-per-gpu-hour, for an hour of {'a GPU' if device == 'cuda' else 'a rank'}")


def catalogued(device_name: str | None, tiers: tuple[str, ...]) -> Price:
    """The price of the card that CUDA calls `device_name`, by the rule above."""
    named = [row for row in catalogue() if device_name and device_name in row["device_names"].split("|")]
    rows = [row for row in named if row["tier"] in tiers]
    if not rows:
        way = "" if tiers == SPOT else "; --usd-per-gpu-hour gives one"
        return Price(None, f"the price catalogue has no {tiers[0]} price of {device_name or 'it'}{way}")
    trust = next(each for each in TRUST if any(row["trust"].startswith(each) for row in rows))
    rows = [row for row in rows if row["trust"].startswith(trust)]
    prices = [float(row["usd_per_gpu_hour"]) for row in rows]
    how = f"median of {len(rows)} rows" if len(rows) > 1 else "one row"
    listed = ", ".join(
        f"{row['provider']} {price:g} {row['tier']} x{row['gpus']}" for row, price in zip(rows, prices, strict=True)
    )
    dates, sources = (", ".join(sorted({row[name] for row in rows})) for name in ("date", "source"))
    return Price(
        statistics.median(prices),
        f"catalogue, {rows[0]['gpu']}, {how}: {listed}; date {dates}; trust {trust}; source {sources}",
    )


@functools.cache
def catalogue() -> tuple[Mapping[str, str], ...]:
    """The rows of gpu_prices.csv."""
    with Path(__file__).with_name("gpu_prices.csv").open(newline="") as file:
        return tuple(csv.DictReader(line for line in file if not line.startswith("#")))
