"""Signals that ask a run to end: collected, never raised in the middle of something. No torch."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from ..stopping import SIGNALS


class Interrupts:
    """Within, the signals of `SIGNALS` are counted. One that was ignored at the start (`nohup`) stays so.

    Outside of a process's main thread, where Python takes no signals, it counts none.
    """

    def __init__(self) -> None:
        self.signals: list[signal.Signals] = []
        self._before: dict[int, object] = {}

    @property
    def count(self) -> int:
        return len(self.signals)

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._count)
        return self

    def _count(self, number: int, frame: FrameType | None) -> None:
        # Nothing that takes a lock: another signal may come in the middle of this.
        self.signals.append(signal.Signals(number))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # pyright: ignore[reportArgumentType] (what signal.signal itself returned)
