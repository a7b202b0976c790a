"""What the cards did over the measured steps, by the readings of NVML. No torch.

A host's readings and its ranks' steps have the same monotonic clock. A reading counts where it falls into a measured
step; energy is the difference of what it had come to at the end and at the begin of each stretch of measured steps.
What a card did while nobody looked is not known: holes longer than NVML's own averages reach back leave a null.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..used import TelemetryRecord
from .load import HostTelemetry, RankRecords, Run
from .reasons import Null, nulls
from .statistics import P99_STEPS
from .steps import samples_per_step, unmarked

# nvml.h: a sample period of utilisation is between 1/6 and 1 second, and power is averaged over 1 second on Ampere and
# later. A shorter window would be told of the time before it, a longer hole would be told of by no reading.
AVERAGED_SECONDS = 1.0
# Of 20 ms each.
LEAST_PCIE_READINGS = 10
# Between two steps of one stretch: their records' seconds are floats.
ADJACENT_NS = 1000
# Reasons for clocks below the highest that hold nobody back.
HARMLESS = ("gpu_idle",)
PCIE = ("pcie_rx_bytes_per_second", "pcie_tx_bytes_per_second")
MEANS = ("gpu_percent", "memory_percent", "sm_clock_mhz", "memory_clock_mhz", *PCIE)
PEAKS = ("memory_used_bytes", "temperature_celsius")
FIELDS = (*MEANS, *PEAKS, "throttled_share")
ENERGY = ("power_watts", "joules_per_sample", "energy_source")
# The fields that tell of energy, the better one first.
METHODS = {"energy_joules": "energy_counter", "power_watts": "integrated_power"}
NO_GPU = "the run used no GPU"


class _UnknownError(Exception):
    """Something is not known. The text says why."""


@dataclass(frozen=True)
class _Card:
    """A card over the stretches of measured steps of its first rank: rows of begin and end, in the host's clock."""

    ranks: list[int]
    host: str
    readings: list[TelemetryRecord]
    lacks: dict[str | None, str]
    stretches: np.ndarray

    @property
    def seconds(self) -> float:
        return float((self.stretches[:, 1] - self.stretches[:, 0]).sum() * 1e-9)

    def given(self, field: str) -> tuple[np.ndarray, list[Any]]:
        """When `field` was given, and what."""
        known = [(each.at_ns, value) for each in self.readings if (value := getattr(each, field)) is not None]
        return np.array([at for at, _ in known], dtype=np.int64), [value for _, value in known]

    def why_not(self, field: str) -> str:
        return self.lacks.get(field) or self.lacks.get(None) or "telemetry has no reading of it"

    def within(self, at_ns: np.ndarray) -> np.ndarray:
        """Which of the times fall into a measured step."""
        place = np.searchsorted(self.stretches[:, 0], at_ns, side="right") - 1
        return (place >= 0) & (at_ns < self.stretches[place, 1])

    def covered(self, field: str) -> tuple[np.ndarray, list[Any]]:
        """`given` from the first stretch to the last, where it tells of the whole of each. Raises _UnknownError."""
        at_ns, values = self.given(field)
        if not values:
            raise _UnknownError(self.why_not(field))
        first = np.searchsorted(at_ns, self.stretches[:, 0], side="right") - 1
        last = np.searchsorted(at_ns, self.stretches[:, 1], side="left")
        if first.min() < 0:
            raise _UnknownError("telemetry began after the measured steps did")
        if last.max() >= len(at_ns):
            why = self.lacks.get(field) or self.lacks.get(None)
            raise _UnknownError(f"telemetry ended before the measured steps did{f' ({why})' if why else ''}")
        hole = max(np.diff(at_ns[a : b + 1]).max(initial=0) for a, b in zip(first, last, strict=True)) * 1e-9
        if hole > AVERAGED_SECONDS:
            raise _UnknownError(f"telemetry has a hole of {hole:.1f} s in the measured steps")
        return at_ns[first[0] : last[-1] + 1], values[first[0] : last[-1] + 1]

    def counted(self, field: str) -> list[Any]:
        """The values of `field` in measured steps. Raises _UnknownError."""
        at_ns, values = self.given(field) if field in PCIE else self.covered(field)
        if not values:
            raise _UnknownError(self.why_not(field))
        inside = [value for value, counts in zip(values, self.within(at_ns), strict=True) if counts]
        least = LEAST_PCIE_READINGS if field in PCIE else 1
        if len(inside) < least:
            raise _UnknownError(f"{len(inside)} readings fell into measured steps, and {least} are needed")
        return inside

    def joules(self, field: str) -> float:
        """Energy over all stretches, by the counter (`energy_joules`) or by integrating `power_watts`.

        Raises _UnknownError.
        """
        at_ns, values = self.covered(field)
        seconds, come_to = (at_ns - at_ns[0]) * 1e-9, np.asarray(values, dtype=np.float64)
        if field == "power_watts":
            come_to = np.concatenate([[0.0], np.cumsum(np.diff(seconds) * (come_to[1:] + come_to[:-1]) / 2)])
        elif (np.diff(come_to) < 0).any():
            raise _UnknownError("its energy counter went back")
        begins, ends = ((self.stretches[:, column] - at_ns[0]) * 1e-9 for column in (0, 1))
        joules = float((np.interp(ends, seconds, come_to) - np.interp(begins, seconds, come_to)).sum())
        if joules <= 0:
            raise _UnknownError(f"its {'power' if field == 'power_watts' else 'energy counter'} stood at 0")
        return joules

    def fact(self, field: str) -> Any:
        """What the card's row says of `field`. Raises _UnknownError."""
        found = self.counted(field if field != "throttled_share" else "clock_events")
        if field != "throttled_share":
            return max(found) if field in PEAKS else float(np.mean(found))
        held = [[name for name in names if name not in HARMLESS] for names in found]
        shares = {name: sum(name in names for names in held) / len(held) for name in sorted(set().union(*held))}
        return {"any": sum(map(bool, held)) / len(held), **shares}


def telemetry(run: Run, null: Null) -> dict[str, Any]:
    """The part of `utilization` that cards tell: means over the run's cards, peaks of the worst, and a row for each."""
    found = {"p99_h2d_seconds": _p99_h2d(run, null)}
    try:
        cards = _cards(run)
    except _UnknownError as error:
        return nulls("utilization", (*FIELDS, *ENERGY, "cards"), str(error), null) | found
    rows: list[dict[str, Any]] = [{"ranks": card.ranks, "host": card.host} for card in cards]
    for field in FIELDS:
        why = ""
        for card, row in zip(cards, rows, strict=True):
            try:
                row[field] = card.fact(field)
            except _UnknownError as error:
                row[field], why = None, why or _of(card, cards, error)
        if why:
            null(f"utilization.cards.{field}", why)
            null(f"utilization.{field}", why)
        found[field] = None if why else _over([row[field] for row in rows], field)
    return found | _energy(run, cards, rows, null) | {"cards": rows}


def _over(values: list[Any], field: str) -> Any:
    """`field` of all cards from that of each."""
    if field == "throttled_share":
        names = dict.fromkeys(name for shares in values for name in shares)
        return {name: sum(shares.get(name, 0.0) for shares in values) / len(values) for name in names}
    return max(values) if field in PEAKS else float(np.mean(values))


def _energy(run: Run, cards: list[_Card], rows: list[dict[str, Any]], null: Null) -> dict[str, Any]:
    """Energy of all cards by one method: their counters where each has one, else their power."""
    whys = []
    for field, method in METHODS.items():
        joules = []
        for card in cards:
            try:
                joules.append(card.joules(field))
            except _UnknownError as error:
                whys.append(f"{method.replace('_', ' ')}: {_of(card, cards, error)}")
                break
        if len(joules) < len(cards):
            continue
        watts = [each / card.seconds for each, card in zip(joules, cards, strict=True)]
        for row, each in zip(rows, watts, strict=True):
            row["power_watts"] = each
        samples = samples_per_step(run)
        if samples is None:
            null("utilization.joules_per_sample", "samples were not counted: probe.batches(loader) counts them")
        total = None if samples is None else sum(joules) / (samples * len(run.complete_steps))
        source = {"method": method, "why": whys[0] if whys else "every card counts its energy"}
        return {"power_watts": float(np.mean(watts)), "joules_per_sample": total, "energy_source": source}
    for row in rows:
        row["power_watts"] = None
    null("utilization.cards.power_watts", "; ".join(whys))
    return nulls("utilization", ENERGY, "; ".join(whys), null)


def _of(card: _Card, cards: list[_Card], error: Exception) -> str:
    return f"card of rank {card.ranks[0]}: {error}" if len(cards) > 1 else str(error)


def _p99_h2d(run: Run, null: Null) -> float | None:
    """Of the copy to the device in a step, mean over ranks."""
    steps = len(run.complete_steps)
    if run.run_json["config"]["device"] == "cpu":
        null("utilization.p99_h2d_seconds", NO_GPU)
    elif (why := unmarked(run).get("h2d")) is not None:
        null("utilization.p99_h2d_seconds", why)
    elif steps < P99_STEPS:
        why = f"too few measured steps ({steps})" if steps else run.why_no_step
        null("utilization.p99_h2d_seconds", why)
    else:
        return float(np.quantile(run.phase_seconds["h2d"].mean(axis=0), 0.99))
    return None


def _cards(run: Run) -> list[_Card]:
    """The cards of all ranks. Raises _UnknownError where a rank's is not known, or the window is too short."""
    if run.run_json["config"]["device"] == "cpu":
        raise _UnknownError(NO_GPU)
    if not run.complete_steps:
        raise _UnknownError(run.why_no_step)
    if not run.telemetry:
        raise _UnknownError("no telemetry was recorded: scalelab run does that on CUDA, for its own ranks")
    ranks = {rank.rank: rank for rank in run.ranks}
    cards: list[_Card] = []
    for host in run.telemetry:
        for number, watched in enumerate(host.start.cards if host.start else ()):
            here = [rank for rank in watched.ranks if rank in ranks]
            if here:
                cards.append(_card(host, number, here, _stretches(run, host, ranks[here[0]])))
    if lost := sorted(set(ranks) - {rank for card in cards for rank in card.ranks}):
        raise _UnknownError(f"rank {lost[0]} is in no host's telemetry")
    if (shortest := min(card.seconds for card in cards)) < AVERAGED_SECONDS:
        raise _UnknownError(
            f"the measured steps took {shortest:.2f} s in all, and NVML's figures are averages over up to "
            f"{AVERAGED_SECONDS:g} s: measure for longer (--steps)"
        )
    return cards


def _card(host: HostTelemetry, number: int, ranks: list[int], stretches: np.ndarray) -> _Card:
    assert host.start is not None
    lacks: dict[str | None, str] = {}
    for lack in host.lacks:
        if lack.card == number:
            lacks.setdefault(lack.field, lack.why)
    return _Card(
        ranks=ranks,
        host=host.start.host,
        readings=sorted((each for each in host.readings if each.card == number), key=lambda each: each.at_ns),
        lacks=lacks,
        stretches=stretches,
    )


def _stretches(run: Run, host: HostTelemetry, rank: RankRecords) -> np.ndarray:
    """Begin and end of what the rank's measured steps cover without a break, in nanoseconds of the host's clock."""
    assert host.start is not None
    if rank.start is None or rank.start.boot_id != host.start.boot_id:
        raise _UnknownError(f"rank {rank.rank} and the telemetry of its host do not have one clock")
    places = run.places[run.ranks.index(rank)]
    first_ns = int(rank.steps.begin_ns[places[0]])
    if first_ns < 0:
        raise _UnknownError("the steps have no time on the host's clock")
    start = rank.steps.numbers["start_seconds"][places]
    begins = (start - start[0]) * 1e9
    ends = begins + rank.steps.numbers["seconds"][places] * 1e9
    breaks = np.flatnonzero(begins[1:] - ends[:-1] > ADJACENT_NS)
    stretches = np.stack([begins[np.r_[0, breaks + 1]], ends[np.r_[breaks, len(places) - 1]]], axis=1)
    return first_ns + stretches.round().astype(np.int64)
