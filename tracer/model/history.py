"""How RSS and each stack's live bytes went over the window, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from tracer.model.rates import MIN_SECONDS, Outlook, Trend, outlook

T = TypeVar("T")

# Enough points to tell thirds of the window apart; past it, every second one is dropped.
_MAX_POINTS = 24
# RSS is looked at more often, as that costs next to nothing.
_MAX_SAMPLES = 512
# Fewer points say nothing about how a quantity goes on.
MIN_POINTS = 5
# What still grows: the last third of the window brought at least this share of the whole growth (linear: a third).
STILL_GROWING_SHARE = 0.10


@dataclass(frozen=True, slots=True)
class Point:
    """One look: seconds since the start, RSS in bytes, live bytes of each stack."""

    seconds: float
    rss: int
    live: Mapping[int, int]


class _Thinned(Generic[T]):
    """Looks at even distances, however many come: the distance of those kept doubles whenever there are too many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.kept: list[T] = []
        self._step, self._seen = 1, 0

    def add(self, look: T) -> None:
        if self._seen % self._step == 0:
            self.kept.append(look)
            if len(self.kept) > self._most:
                self.kept = self.kept[::2]
                self._step *= 2
        self._seen += 1


class History:
    """Points of the window, and samples of RSS, at even distances each."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything, as after an exec."""
        self._looks: _Thinned[Point] = _Thinned(_MAX_POINTS)
        self._samples: _Thinned[tuple[float, float]] = _Thinned(_MAX_SAMPLES)

    @property
    def _points(self) -> list[Point]:
        return self._looks.kept

    def add(self, point: Point) -> None:
        """Keep a look, or not, as there is room."""
        self._looks.add(point)

    def sample(self, seconds: float, rss: int) -> None:
        """Take note of RSS between looks."""
        self._samples.add((seconds, rss))

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

    def rss_outlook(self, seconds: float, rss: int) -> Outlook:
        """Whether RSS still grows at the end of the window, where it is ``rss``."""
        return outlook([*self._samples.kept, (seconds, float(rss))])

    def halfway(self) -> Point | None:
        """The look nearest to the middle of the window."""
        return min(self._points, key=lambda point: abs(point.seconds - self.seconds / 2), default=None)

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
