"""What a running session is handed to besides its view: pushed profiles and metrics. At most one of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tracer.model.live import LiveState
from tracer.model.report import Report
from tracer.push.endpoint import Endpoint
from tracer.push.exporter import Address, Exporter, open_exporter
from tracer.push.pusher import Limits, Pusher
from tracer.push.pyroscope import interval_of

# How long the end of a session may wait for the last profiles to be delivered.
FLUSH_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Destinations:
    """Where to push profiles, at what distance in seconds, and where metrics go; None: nowhere."""

    endpoint: Endpoint | None = None
    interval: float = 15.0
    metrics: Address | Path | None = None


class Outlets:
    """Open while entered; ``on_tick`` is for a session to call. It returns at once, and none of this can fail it."""

    def __init__(
        self,
        destinations: Destinations,
        say: Callable[[str], None],
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises MissingDependencyError where a library is not installed."""
        self._destinations = destinations
        self._clock = clock
        endpoint, metrics = destinations.endpoint, destinations.metrics
        self._pusher = Pusher(endpoint, say, limits or Limits()) if endpoint is not None else None
        self._exporter: Exporter | None = open_exporter(metrics, say) if metrics is not None else None
        self._pushed: Report | None = None
        self._pushed_at = 0.0
        self._notes: list[str] = []

    def __enter__(self) -> Self:
        """Raises UsageError where metrics cannot go where they are to."""
        if self._exporter is not None:
            self._exporter.start()
        if self._pusher is not None:
            self._pusher.start()
        self._pushed_at = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._exporter is not None:
            self._exporter.close()
        if self._pusher is not None:
            self._pusher.close(0.0 if error is not None else FLUSH_SECONDS)
            self._notes += [note] if (note := self._pusher.note()) else []

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to hand a session to."""
        return self._pusher is not None or self._exporter is not None

    def on_tick(self, state: LiveState, interim: Callable[[], Report], is_last: bool) -> None:
        """Take over a state; with ``interim``, the session's report so far is made where it is needed."""
        if self._exporter is not None:
            self._exporter.update(state)
        now = self._clock()
        if self._pusher is not None and (is_last or now - self._pushed_at >= self._destinations.interval):
            report = interim()
            self._pusher.offer(interval_of(self._pushed, report), self._pushed_at, now)
            self._pushed, self._pushed_at = report, now

    def noted(self, report: Report) -> Report:
        """The session's report, with what went wrong here, once this is closed."""
        return replace(report, notes=(*report.notes, *self._notes))
