"""Places in a BPF array: first fit, and what was given back is left alone while a walk may still read it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

# A walk takes microseconds; a thread that is preempted within one comes back within this time, or its stack is lost.
GRACE_SECONDS = 2.0


class Space:
    """Hands out runs of consecutive indices below `size`; not thread-safe."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self.size = size
        self.used = 0
        self._clock = clock
        self._free: list[tuple[int, int]] = [(0, size)] if size else []
        self._resting: deque[tuple[float, int, int]] = deque()

    def take(self, count: int) -> int | None:
        """The first index of a run of `count`, or None where there is none (now)."""
        self._wake()
        for position, (start, length) in enumerate(self._free):
            if length >= count:
                self._free[position : position + 1] = [(start + count, length - count)] if length > count else []
                self.used += count
                return start
        return None

    def give(self, start: int, count: int) -> None:
        """Return a run; it is handed out again once no walk can be reading it."""
        if count:
            self._resting.append((self._clock(), start, count))
            self.used -= count

    def _wake(self) -> None:
        now = self._clock()
        while self._resting and now - self._resting[0][0] >= GRACE_SECONDS:
            _, start, count = self._resting.popleft()
            self._free.append((start, count))
            self._join()

    def _join(self) -> None:
        joined: list[tuple[int, int]] = []
        for start, count in sorted(self._free):
            if joined and joined[-1][0] + joined[-1][1] == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + count)
            else:
                joined.append((start, count))
        self._free = joined
