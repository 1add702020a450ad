"""Which pages were resident when the window ended."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class ResidentPages:
    """Runs of resident memory as (start, end) addresses, ascending and disjoint, within the ranges looked at.

    Of what was not looked at, or of a process that has ended, everything counts as resident.
    """

    def __init__(self, runs: Sequence[tuple[int, int]] = (), looked_at: Sequence[tuple[int, int]] = ()) -> None:
        self._runs = list(runs)
        self._run_ends = [end for _, end in self._runs]
        self._looked_at = list(looked_at)
        self._looked_starts = [start for start, _ in self._looked_at]

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The resident parts of a range."""
        if not self._knows(start, end):
            return [(start, end)]
        parts: list[tuple[int, int]] = []
        for index in range(bisect_right(self._run_ends, start), len(self._runs)):
            first, last = self._runs[index]
            if first >= end:
                break
            parts.append((max(first, start), min(last, end)))
        return parts

    def _knows(self, start: int, end: int) -> bool:
        index = bisect_right(self._looked_starts, start) - 1
        return index >= 0 and end <= self._looked_at[index][1]
