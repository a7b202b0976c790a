"""Readings of the cards of a run at an even pace, for as long as it lasts. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ..records import Record
from ..used import TelemetryLackRecord, TelemetryRecord, TelemetryStartRecord
from .nvml import CardGoneError, find_cards, load_nvml

# Ten a second: as often as NVML has new numbers of most things (its energy counter moves every 20 to 100 ms, its
# averages are over 1/6 to 1 s).
PERIOD_SECONDS = 0.1
# A reading of PCIe takes the 20 ms over which it counts: with each second sample, one card and one direction.
PCIE_EVERY = 2


def watch(
    uuids: Mapping[int, str | None],
    write: Callable[..., None],
    stopped: Callable[[float], bool],
    *,
    host: str,
    boot_id: str,
    load: Callable[[], Any] = load_nvml,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> None:
    """Read the cards that ranks have (`uuids` by rank) until `stopped(seconds)`, which waits that long, says so, and
    once more then; or until no card answers. `write` takes records.

    What NVML does not give, from its loading on, becomes a record of why. Raises what `write` raises.
    """
    lacks: list[Record] = []

    def lack(card: int, field: str | None, why: str) -> None:
        lacks.append(TelemetryLackRecord(card=card, at_ns=clock_ns(), field=field, why=why))

    watched, cards = find_cards(load, uuids, lack)
    write(TelemetryStartRecord(host=host, boot_id=boot_id, cards=watched), *lacks)
    lacks.clear()
    turn, due = 0, clock_ns()
    ending = False
    while cards:
        samples: list[Record] = []
        chosen = list(cards)[turn // PCIE_EVERY % len(cards)] if turn % PCIE_EVERY == 0 and not ending else None
        for place, card in list(cards.items()):
            at_ns = clock_ns()
            try:
                values = card.read()
                if place == chosen:
                    values |= card.read_pcie(turn // PCIE_EVERY // len(cards))
                samples.append(TelemetryRecord(card=place, at_ns=at_ns, **values))
            except CardGoneError as error:
                lack(place, None, str(error))
                del cards[place]
        write(*samples, *lacks)
        lacks.clear()
        if ending or not cards:
            return
        turn += 1
        # Time that was lost is not made up for.
        due = max(due + round(PERIOD_SECONDS * 1e9), clock_ns())
        ending = stopped((due - clock_ns()) * 1e-9)
