"""Ctrl-C, SIGTERM and a closed terminal end tracing in order: the report is still made, the probes are gone."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self


class StopSignals:
    """While entered, the first signal asks to stop; a second Ctrl-C raises KeyboardInterrupt."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in self._SIGNALS:
            # nohup, or a shell without job control, wants it ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def requested(self) -> str | None:
        """What asked to stop, in words; None where nothing has."""
        if self._received is None:
            return None
        return {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "the terminal was closed"}[
            signal.Signals(self._received)
        ]
