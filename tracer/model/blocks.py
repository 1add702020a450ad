"""Live allocations placed in memory: which of them lie in which VMA, and how much of them is resident."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence


class Blocks:
    """All live allocations, in ascending order of address, held as columns (32 bytes a block).

    ``sizes`` are as requested, ``stacks`` stack ids, ``times`` nanoseconds of CLOCK_MONOTONIC.
    """

    def __init__(self, addresses: Sequence[int], sizes: Sequence[int], stacks: Sequence[int], times: Sequence[int]):
        order = sorted(range(len(addresses)), key=addresses.__getitem__)
        self.addresses = array("Q", (addresses[i] for i in order))
        self.sizes = array("Q", (sizes[i] for i in order))
        self.stacks = array("Q", (stacks[i] for i in order))
        self.times = array("Q", (times[i] for i in order))

    def __len__(self) -> int:
        return len(self.addresses)

    def within(self, start: int, end: int) -> range:
        """Indices of the blocks that begin in a range of addresses."""
        return range(bisect_left(self.addresses, start), bisect_left(self.addresses, end))

    def bytes_by_stack(self, indices: range) -> dict[int, int]:
        """Requested bytes of each stack among these blocks."""
        totals: dict[int, int] = defaultdict(int)
        for i in indices:
            totals[self.stacks[i]] += self.sizes[i]
        return dict(totals)

    def bytes_by_stack_until(self, time_ns: int) -> dict[int, int]:
        """Requested bytes of each stack among the blocks allocated no later than that."""
        totals: dict[int, int] = defaultdict(int)
        for stack, size, allocated_ns in zip(self.stacks, self.sizes, self.times, strict=True):
            if allocated_ns <= time_ns:
                totals[stack] += size
        return dict(totals)

    def resident_by_stack(self, indices: range, runs: Sequence[tuple[int, int]]) -> dict[int, int]:
        """Bytes of each stack among these blocks that lie in resident runs (ascending, disjoint addresses)."""
        totals: dict[int, int] = defaultdict(int)
        position = 0
        for i in indices:
            start = self.addresses[i]
            end = start + self.sizes[i]
            while position < len(runs) and runs[position][1] <= start:
                position += 1
            # A block may span runs, and the next one may begin in the last of them: look ahead without moving.
            ahead = position
            while ahead < len(runs) and runs[ahead][0] < end:
                totals[self.stacks[i]] += min(end, runs[ahead][1]) - max(start, runs[ahead][0])
                ahead += 1
        return dict(totals)

    def count_by_stack(self) -> dict[int, int]:
        """Number of each stack's blocks."""
        return dict(Counter(self.stacks))

    def oldest_by_stack(self) -> dict[int, int]:
        """The earliest allocation time of each stack's live blocks."""
        oldest: dict[int, int] = {}
        for stack, time_ns in zip(self.stacks, self.times, strict=True):
            if time_ns < oldest.get(stack, time_ns + 1):
                oldest[stack] = time_ns
        return oldest

    def class_by_stack(self, ranges: Sequence[tuple[int, int, str]]) -> dict[int, str]:
        """The class of memory in which most bytes of each stack lie; ``ranges`` are (start, end, class)."""
        weights: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for start, end, name in ranges:
            for stack, size in self.bytes_by_stack(self.within(start, end)).items():
                weights[stack][name] += max(size, 1)
        return {stack: max(names, key=names.__getitem__) for stack, names in weights.items()}
