"""Private memory (Private_Dirty + Swap) at every look, although reading it at every look would cost too much."""

from __future__ import annotations

from bisect import bisect_right

from tracer.model.thinned import Thinned

_MAX_POINTS = 240

Points = list[tuple[float, int]]


class PrivateSeries:
    """RssAnon + VmSwap, which cost nothing to read, corrected by the exact figure wherever that was read.

    The two differ by what is no property of this process alone: pages shared with a parent or a child, dirty pages of
    files, memory given back by MADV_FREE that the kernel has not taken yet. The difference is taken to change evenly
    between two exact readings, and not at all before the first and after the last.
    """

    def __init__(self) -> None:
        self._cheap: Thinned[tuple[float, int]] = Thinned(_MAX_POINTS)
        self._offsets: Thinned[tuple[float, int]] = Thinned(_MAX_POINTS)

    def add(self, seconds: float, cheap: int, exact: int | None = None) -> None:
        """A look: ``cheap`` is RssAnon + VmSwap, ``exact`` is Private_Dirty + Swap, where it was read."""
        if exact is not None:
            self._offsets.add((seconds, exact - cheap))
        self._cheap.add((seconds, cheap))

    @property
    def exact_count(self) -> int:
        """How many exact readings there were."""
        return self._offsets.seen

    def newest(self) -> int:
        """The figure at the newest look; 0 before the first."""
        points = self.points()
        return points[-1][1] if points else 0

    def points(self) -> Points:
        """Seconds and bytes, thinned out, the newest last."""
        offsets = self._offsets.items()
        times = [seconds for seconds, _ in offsets]
        return [(seconds, max(0, cheap + _offset(seconds, times, offsets))) for seconds, cheap in self._cheap.items()]


def _offset(seconds: float, times: list[float], offsets: Points) -> int:
    if not offsets:
        return 0
    after = bisect_right(times, seconds)
    if after == 0:
        return offsets[0][1]
    if after == len(offsets):
        return offsets[-1][1]
    (t0, one), (t1, other) = offsets[after - 1], offsets[after]
    return one + round((other - one) * (seconds - t0) / (t1 - t0))
