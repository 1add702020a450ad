"""Sums over many disjoint address ranges: how much of a range they cover, without visiting each."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

Run = tuple[int, int]  # start and end of an address range, the end excluded


class Spans:
    """Ascending, disjoint address ranges, kept as arrays: 24 bytes each. Immutable once made."""

    __slots__ = ("_before", "_lengths", "_starts")

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        """Keep ``runs`` as (start, end); they must be ascending and disjoint."""
        rows = list(runs)
        self._keep(array("Q", [start for start, _ in rows]), array("Q", [end - start for start, end in rows]))

    @classmethod
    def of_arrays(cls, starts: array[int], lengths: array[int]) -> Spans:
        """The same from two arrays of equal length, in bytes, which it keeps."""
        spans = cls.__new__(cls)
        spans._keep(starts, lengths)
        return spans

    def _keep(self, starts: array[int], lengths: array[int]) -> None:
        self._starts = starts
        self._lengths = lengths
        self._before = array("Q", accumulate(lengths, initial=0))

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Run]:
        for start, length in zip(self._starts, self._lengths, strict=True):
            yield start, start + length

    @property
    def total(self) -> int:
        """Bytes in all ranges."""
        return self._before[-1]

    @property
    def ends(self) -> Run:
        """The first start and the last end; (0, 0) where there is none."""
        return (self._starts[0], self._starts[-1] + self._lengths[-1]) if len(self) else (0, 0)

    def within(self, start: int, end: int) -> int:
        """Bytes of the ranges that lie between two addresses."""
        return self._below(end) - self._below(start) if start < end else 0

    def parts(self, start: int, end: int) -> Iterator[Run]:
        """The ranges that overlap with [start, end), cut to it."""
        for index in range(max(0, bisect_right(self._starts, start) - 1), len(self)):
            first = self._starts[index]
            if first >= end:
                return
            last = first + self._lengths[index]
            if last > start:
                yield max(first, start), min(last, end)

    def between(self, start: int, end: int) -> Spans:
        """The ranges that begin between two addresses."""
        cut = slice(bisect_left(self._starts, start), bisect_left(self._starts, end))
        return Spans.of_arrays(self._starts[cut], self._lengths[cut])

    def holds(self, address: int) -> bool:
        """Whether the address lies in one of the ranges."""
        index = bisect_right(self._starts, address) - 1
        return index >= 0 and address < self._starts[index] + self._lengths[index]

    def longer_than(self, length: int) -> Iterator[Run]:
        """The ranges of more than ``length`` bytes."""
        for start, size in zip(self._starts, self._lengths, strict=True):
            if size > length:
                yield start, start + size

    def length_at(self, start: int) -> int:
        """The length of the range that begins at an address; 0 where none does."""
        index = bisect_left(self._starts, start)
        return self._lengths[index] if index < len(self) and self._starts[index] == start else 0

    def starting_within(self, start: int, end: int) -> int:
        """How many of the ranges start between two addresses."""
        return bisect_left(self._starts, end) - bisect_left(self._starts, start) if start < end else 0

    def _below(self, address: int) -> int:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return 0
        return self._before[index] + min(address - self._starts[index], self._lengths[index])


def gaps(runs: Sequence[Run], start: int, end: int) -> Iterator[Run]:
    """What ascending, disjoint ``runs`` leave of [start, end)."""
    for low, high in runs:
        if low > start:
            yield start, min(low, end)
        start = max(start, high)
        if start >= end:
            return
    yield start, end


def joined(spans: Iterable[Run]) -> Iterator[Run]:
    """Ascending ranges with neighbours that touch made one."""
    current: Run | None = None
    for start, end in spans:
        if current is not None and start == current[1]:
            current = (current[0], end)
            continue
        if current is not None:
            yield current
        current = (start, end)
    if current is not None:
        yield current
