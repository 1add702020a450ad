"""How RSS and each stack's live bytes went over the window, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracer.model.report import Trend

# Enough points to tell thirds of the window apart; past it, every second one is dropped.
_MAX_POINTS = 24
# Fewer points, or a shorter time (seconds), say nothing about how a quantity goes on.
MIN_POINTS = 5
MIN_SECONDS = 3.0
# What still grows: the last third of the window brought at least this share of the whole growth (linear: a third).
STILL_GROWING_SHARE = 0.10


@dataclass(frozen=True, slots=True)
class Point:
    """One look: seconds since the start, RSS in bytes, live bytes of each stack."""

    seconds: float
    rss: int
    live: Mapping[int, int]


class History:
    """Points of the window at even distances, however long it lasts."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._step = 1
        self._seen = 0

    def add(self, point: Point) -> None:
        """Keep a look, or not: the distance of those kept doubles whenever there are too many."""
        if self._seen % self._step == 0:
            self._points.append(point)
            if len(self._points) > _MAX_POINTS:
                self._points = self._points[::2]
                self._step *= 2
        self._seen += 1

    def clear(self) -> None:
        """Forget everything, as after an exec."""
        self._points.clear()
        self._step, self._seen = 1, 0

    def rss_values(self) -> tuple[int, ...]:
        """RSS at each look, in bytes."""
        return tuple(point.rss for point in self._points)

    @property
    def seconds(self) -> float:
        """How long the looks reach."""
        return self._points[-1].seconds if self._points else 0.0

    def trend_of_stack(self, stack: int, live_now: int, freed_share: float) -> Trend:
        """Whether a stack's live bytes still grow at the end of the window."""
        if live_now <= 0:
            return "steady" if freed_share > 0 else "unknown"
        return self._trend(live_now, [(point.seconds, point.live.get(stack, 0)) for point in self._points], freed_share)

    def trend_of_rss(self, rss_now: int) -> Trend:
        """Whether RSS still grows at the end of the window."""
        return self._trend(rss_now, [(point.seconds, point.rss) for point in self._points], 0.0)

    def _trend(self, now: int, points: list[tuple[float, int]], freed_share: float) -> Trend:
        if len(points) < MIN_POINTS or self.seconds < MIN_SECONDS:
            return "unknown"
        first = points[0][1]
        before = max((value for seconds, value in points if seconds <= self.seconds * 2 / 3), default=first)
        grown = now - first
        if grown > 0 and now - before >= STILL_GROWING_SHARE * grown:
            return "growing"
        # Most of what was allocated has been freed again: blocks come and go.
        return "steady" if freed_share >= 0.5 or grown <= 0 else "levelled-off"
