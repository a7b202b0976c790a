"""What samples cost, and which cause takes how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ... import units
from ..section import Block, Column, Figures, Number, Paragraph, Section, Table
from ..words import leaf, why

PLACE = 30
PER_MILLION = "usd_per_million_samples"
PARTS = {
    "start_up": "start-up",
    "warmup": "warm-up steps",
    "measured": "measured steps",
    "after_training": "after training",
}


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    cost = summary["cost"]
    blocks: list[Block] = [Figures(_figures(summary))]
    leaves = cost.get("by_cause_leaves")
    if leaves:
        unit = "$100" if cost[PER_MILLION] is not None else "100 device-hours"
        blocks += [
            Paragraph(_of_each(pictures["of_a_hundred"], unit)),
            _table(leaves, cost.get("by_cause_total") or {}),
        ]
    else:
        blocks.append(Paragraph(f"Which cause takes how much is not known: {why(summary, 'cost.by_cause')}.", "note"))
    if (whole := cost["whole_run"]) is not None:
        blocks += [_whole(whole), _parts(whole["parts"])]
    return Section("money", "What it costs, by cause", blocks)


def _figures(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    cost = summary["cost"]
    hours, usd, price = cost["device_hours_per_million_samples"], cost[PER_MILLION], cost["usd_per_gpu_hour"]
    spread = units.interval(cost.get("device_hours_ci95"))
    rows = [
        (
            "Device-hours per million samples",
            units.figures(hours),
            f"{spread} hours of one {cost['device_kind']}".strip()
            if hours is not None
            else _why(summary, "device_hours_per_million_samples"),
        ),
        (
            "Cost per million samples",
            units.usd(usd),
            units.interval(cost.get("usd_ci95")) if usd is not None else _why(summary, PER_MILLION),
        ),
        (
            "Price of an hour",
            units.usd(price),
            str(cost["price_source"]) if price is not None else _why(summary, "usd_per_gpu_hour"),
        ),
    ]
    if (spot := cost.get("spot")) is not None:
        hour = units.usd(spot["usd_per_gpu_hour"])
        rows.append(
            ("The same on spot machines", units.usd(spot[PER_MILLION]), f"{hour} an hour: {spot['price_source']}")
        )
    if (energy := cost.get("energy_usd_per_million_samples")) is not None:
        tariff = units.usd(cost["usd_per_kwh"])
        rows.append(("Energy of the cards, per million samples", units.usd(energy), f"at {tariff} a kWh"))
    return rows


def _why(summary: Mapping[str, Any], name: str) -> str:
    return why(summary, f"cost.{name}")


def _of_each(rows: Sequence[Mapping[str, Any]], unit: str) -> str:
    sign = "$" if unit.startswith("$") else ""
    parts = [f"{sign}{row['amount']:.1f} {leaf(row['cause']) if row['cause'] else 'the rest'}" for row in rows]
    return f"Of each {unit}: {', '.join(parts)}."


def _table(leaves: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> Table:
    columns = [
        Column("cause", "cause", numeric=False),
        Column("a step", "seconds_per_step"),
        Column("share", "share"),
        Column("$ per million samples", PER_MILLION),
    ]
    rows = [
        [
            leaf(row["cause"]),
            Number(units.milliseconds(row["seconds"]), row["seconds"]),
            Number(units.percent(row["share"]), row["share"], row["share"]),
            Number(units.usd(row[PER_MILLION]), row[PER_MILLION]),
        ]
        for row in leaves
    ]
    seconds, usd = total.get("seconds_per_step"), total.get(PER_MILLION)
    whole = [Number(units.milliseconds(seconds), seconds), Number("100.0%", 1.0), Number(units.usd(usd), usd)]
    rows.append(["all of it", *whole])
    caption = "Each cause once, events between steps included, but not the profiler's: the shares sum to 1"
    return Table("cost-by-cause", caption, columns, rows, total=frozenset({len(rows) - 1}))


def _whole(whole: Mapping[str, Any]) -> Table:
    columns = [Column("of the whole run", "what", numeric=False), Column("value", "value")]
    rows = [
        [name.replace("_", " "), Number(units.figures(each), each)] for name, each in whole.items() if name != "parts"
    ]
    caption = "The run as a whole, with start-up, evaluations and checkpoints"
    return Table("whole-run", caption, columns, rows)


def _parts(parts: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column("part of the run", "part", numeric=False), Column("time", "seconds"), Column("share", "share")]
    rows = [
        [
            PARTS.get(row["part"], row["part"]),
            Number(units.seconds(row["seconds"]), row["seconds"]),
            Number(units.percent(row["share"]), row["share"], row["share"]),
        ]
        for row in parts
    ]
    caption = "Where the whole run's time went, on rank 0's clock: the parts sum to all of it"
    return Table("whole-run-parts", caption, columns, rows)
