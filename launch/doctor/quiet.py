"""Whether others were at work on this host while something was measured. No torch."""

from __future__ import annotations

import itertools
import os
import threading
from types import TracebackType

from ...profiles.calibration import BusyCores
from ...profiles.capture.host import PERIOD_SECONDS, HostWatch
from ...profiles.used import HostRecord


class OthersWatch:
    """Within, reads how busy the host's cores are, those of this process and all that it starts aside."""

    def __init__(self) -> None:
        self._watch = HostWatch()
        self._readings: list[HostRecord] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read_on, daemon=True)

    def __enter__(self) -> OthersWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._over.set()
        self._thread.join()

    def _read_on(self) -> None:
        while (reading := self._watch.read([os.getpid()])) is not None:
            self._readings.append(reading)
            if self._over.wait(PERIOD_SECONDS):
                break

    def found(self) -> BusyCores | None:
        """Cores that others kept busy from reading to reading; None where this host does not tell, or too little
        time has passed. What a hypervisor gave to others counts. A process of ours that ended between two readings
        took its last part of a second with it, which then is theirs: the median stands above a few of those."""
        values = [_others(before, after) for before, after in itertools.pairwise(self._readings)]
        return BusyCores.of(values, cores=self._readings[-1].cores) if len(values) > 1 else None


def _others(before: HostRecord, after: HostRecord) -> float:
    busy = after.busy_core_seconds - before.busy_core_seconds - (after.own_core_seconds - before.own_core_seconds)
    stolen = after.stolen_core_seconds - before.stolen_core_seconds
    return max(0.0, busy + stolen) / ((after.at_ns - before.at_ns) * 1e-9)
