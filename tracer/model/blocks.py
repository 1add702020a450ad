"""Live allocations placed in memory: which of them lie in which VMA, and how much of them is resident."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence

from tracer.model.sampling import CERTAIN, Estimate, blocks_for, bytes_for


class Blocks:
    """All live allocations that were sampled, in ascending order of address, held as columns (48 bytes a block).

    ``sizes`` are as requested, ``stacks`` stack ids, ``times`` nanoseconds of CLOCK_MONOTONIC. ``chances`` are those
    with which the blocks were sampled, in 1 / CERTAIN; without them, all blocks are there. Sums are of what the blocks
    stand for; where all are there, they are exact.
    """

    def __init__(
        self,
        addresses: Sequence[int],
        sizes: Sequence[int],
        stacks: Sequence[int],
        times: Sequence[int],
        chances: Sequence[int] | None = None,
    ):
        order = sorted(range(len(addresses)), key=addresses.__getitem__)
        self.addresses = array("Q", (addresses[i] for i in order))
        self.sizes = array("Q", (sizes[i] for i in order))
        self.stacks = array("Q", (stacks[i] for i in order))
        self.times = array("Q", (times[i] for i in order))
        certain = array("Q", [CERTAIN]) * len(self)
        self.chances = certain if chances is None else array("Q", (chances[i] for i in order))
        self.exact = all(chance >= CERTAIN for chance in self.chances)
        # What each stands for, in bytes.
        self._bytes = self.sizes if self.exact else array("Q", map(bytes_for, self.sizes, self.chances))

    def __len__(self) -> int:
        return len(self.addresses)

    def within(self, start: int, end: int) -> range:
        """Indices of the blocks that begin in a range of addresses."""
        return range(bisect_left(self.addresses, start), bisect_left(self.addresses, end))

    def where(self, wanted: Callable[[int], bool]) -> Blocks:
        """The blocks whose index is wanted."""
        indices = [i for i in range(len(self)) if wanted(i)]
        columns = (self.addresses, self.sizes, self.stacks, self.times, self.chances)
        return Blocks(*([column[i] for i in indices] for column in columns))

    def bytes_by_stack(self, indices: range) -> dict[int, int]:
        """Requested bytes of each stack among these blocks."""
        totals: dict[int, int] = defaultdict(int)
        for i in indices:
            totals[self.stacks[i]] += self._bytes[i]
        return dict(totals)

    def bytes_by_stack_until(self, time_ns: int) -> dict[int, int]:
        """Requested bytes of each stack among the blocks allocated no later than that."""
        totals: dict[int, int] = defaultdict(int)
        for stack, size, allocated_ns in zip(self.stacks, self._bytes, self.times, strict=True):
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
            ahead, resident = position, 0
            while ahead < len(runs) and runs[ahead][0] < end:
                resident += min(end, runs[ahead][1]) - max(start, runs[ahead][0])
                ahead += 1
            if resident:
                totals[self.stacks[i]] += bytes_for(resident, self.chances[i])
        return dict(totals)

    def count_by_stack(self) -> dict[int, int]:
        """Number of each stack's blocks."""
        counts: dict[int, float] = defaultdict(float)
        for stack, chance in zip(self.stacks, self.chances, strict=True):
            counts[stack] += blocks_for(chance)
        return {stack: round(count) for stack, count in counts.items()}

    def error_by_stack(self) -> dict[int, int]:
        """Half of the 95 % interval of each stack's bytes; 0 where they are exact."""
        if self.exact:
            return dict.fromkeys(self.stacks, 0)
        estimates: dict[int, Estimate] = defaultdict(Estimate)
        for stack, size, chance in zip(self.stacks, self.sizes, self.chances, strict=True):
            estimates[stack].add(size, chance)
        return {stack: estimate.error for stack, estimate in estimates.items()}

    def error(self, indices: range) -> int:
        """Half of the 95 % interval of the bytes of all these blocks together."""
        total = Estimate()
        if not self.exact:
            for i in indices:
                total.add(self.sizes[i], self.chances[i])
        return total.error

    def rounding(self, indices: range) -> int:
        """What glibc adds to these blocks so that their usable sizes are 24, 40, 56, ... (malloc.c, request2size)."""
        total = 0.0
        for i in indices:
            size = self.sizes[i]
            total += (max(size + 23 & ~15, 32) - 8 - size) * blocks_for(self.chances[i])
        return round(total)

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
