"""Walking the chunks of a range of glibc's heap by their size words, while the process goes on running.

A chunk begins with 16 bytes: the size of the chunk before it (only if that one is free), and its own size with three
flags. What changes under the walk shows as a word that is no size; the walk then goes back some chunks, reads again
what the process has made of them, and goes on. Source: malloc/malloc.c (struct malloc_chunk, sysmalloc).
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from tracer.heap.glibc_arenas import Region
from tracer.heap.heap_walk import WalkRefused
from tracer.heap.spans import Run
from tracer.heap.target_memory import TargetMemory, page_of
from tracer.procfs.pagescan import PAGE

UNIT = 16  # MALLOC_ALIGNMENT: chunks start at and measure multiples of it
_SHIFT = 4
_PREVIOUS_IN_USE, _NON_MAIN = 1, 4
# What is read at once: little where the process has just been seen at work, so that less is old when it is looked at.
_BLOCK = 1 << 20
_SMALL_BLOCK = 64 << 10
# Of the first blocks nothing can be concluded for the rest.
_TELLING = 32 << 20
# How many chunks the walk goes back at the first trouble in a place, doubled with each further one there.
_RETREAT = 16
_MAX_RETREATS = 12
_FEW_RETREATS = 3
_SAME_PLACE = 1 << 20
# Where malloc's memory goes on behind another user's of brk, so many chunks are followed to find out.
_PATIENCE = 1 << 20


class WalkTorn(Exception):
    """The chunks do not fit together: the process changes them faster than they can be read, or they are no chunks."""


class Budget:
    """What a walk may take: ends it by WalkRefused once it is, or would be, too much."""

    def __init__(self, seconds: float, chunks: int, clock: Callable[[], float] = time.monotonic) -> None:
        """At most so many seconds and chunks; ``total`` bytes of heap may be set once they are known."""
        self._clock = clock
        self._seconds = seconds
        self._chunks = chunks
        self._began = clock()
        self._walked = 0
        self._found = 0
        self.total = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    def is_late(self) -> bool:
        """Whether all of the time is spent."""
        return self.elapsed > self._seconds

    def step(self, size: int, chunks: int) -> None:
        """Say that ``size`` bytes and so many chunks were walked."""
        self._walked += size
        self._found += chunks
        elapsed = self.elapsed
        projected = max(1.0, self.total / self._walked) if self._walked > _TELLING else 1.0
        if self._found > self._chunks or self._found * projected > 2 * self._chunks:
            raise WalkRefused("too-large", f"the heap has more than {self._chunks:,} chunks: too many to be walked")
        if elapsed > self._seconds or elapsed * projected > 2 * self._seconds:
            raise WalkRefused("too-large", f"walking the heap would take longer than {self._seconds:g} s")


class RegionWalk:
    """The chunks of one region, as far as they were walked. Positions are in units of 16 bytes from ``base``.

    ``starts`` holds where each chunk begins, ascending; also, once each, where the gaps begin: fenceposts at the end
    of a heap, with memory of another user of brk behind. ``free`` and ``free_lengths`` are the chunks whose successor
    says that they are free. The last chunk is the top where ``has_top``.
    """

    def __init__(
        self, memory: TargetMemory, region: Region, *, is_main: bool, budget: Budget, ends_at_fence: bool = False
    ) -> None:
        """With ``ends_at_fence`` the region ends at the first fencepost, and its own end is only a limit."""
        self._ends_at_fence = ends_at_fence
        self._memory = memory
        self._budget = budget
        self.is_main = is_main
        self.region = region
        self.base = region.first
        self.has_top = False
        code = "I" if region.size >> _SHIFT < 1 << 32 else "Q"
        self.starts = array(code)
        self.free = array(code)
        self.free_lengths = array(code)
        self.gaps: list[Run] = []
        self._expects_top = False
        self._retreats = 0
        self._trouble_at = 0
        self._span = _BLOCK
        self._buffer = bytearray(_BLOCK)

    def run(self, region: Region, *, holds_top: bool) -> None:
        """Walk on to the end of the region as it is now: from its beginning, or from a little before where it ended.

        Raises WalkTorn, and WalkRefused when the budget is spent or part of the region is swapped out.
        """
        self.region = region
        self._expects_top = holds_top
        self._retreats = 0
        position = self._back(_RETREAT)
        while position < self.region.end:
            position = self._block(position)
        self.has_top = holds_top and self.region.end == region.end

    def begins_well(self) -> bool:
        """Whether chunks seem to lead on from the region's beginning."""
        page = page_of(self.base)
        words, _ = self._read(page, PAGE)
        return _chain(words[1::2], (self.base - page) >> _SHIFT, (self.region.end - page) >> _SHIFT)[0]

    def _block(self, position: int) -> int:
        """Walk one block from ``position`` on; return where to go on."""
        start = page_of(position)
        words, end = self._read(start, self._span)
        self._span = min(_BLOCK, 4 * self._span)
        stop = min(end, self.region.end)
        shift = (start - self.base) // UNIT
        before = len(self.starts)
        unit = self._scan(words[1::2], words[0::2], (position - start) >> _SHIFT, (stop - start) >> _SHIFT, shift)
        reached = start + unit * UNIT
        self._budget.step(min(reached, self.region.end) - position, len(self.starts) - before)
        if reached == self.region.end and not self._expects_top:
            # Only what is told by the top's size, or by fenceposts, is certain.
            return self._again(reached)
        if reached >= stop:
            return reached if reached <= self.region.end else self._again(reached)
        return self._fence(words, reached, start) or self._again(reached)

    def _read(self, start: int, size: int) -> tuple[memoryview, int]:
        """The words from a page on, as far as the region goes, and where they end."""
        end = min(start + size, (self.region.end + PAGE - 1) & -PAGE)
        view = memoryview(self._buffer)[: end - start]
        self._memory.fill(view, start, self._memory.pages(start, end).resident)
        return view.cast("Q"), end

    def _scan(self, sizes: memoryview, feet: memoryview, unit: int, stop: int, shift: int) -> int:
        """Follow the sizes from ``unit`` on; return where there is none, or a unit not below ``stop``.

        Units count from the block's beginning, ``shift`` is that of the block. This is the loop that costs.
        """
        used = _PREVIOUS_IN_USE if self.is_main else _PREVIOUS_IN_USE | _NON_MAIN
        add, add_free, add_length = self.starts.append, self.free.append, self.free_lengths.append
        previous = self.starts[-1] - shift if self.starts else unit
        while unit < stop:
            word = sizes[unit]
            flags = word & 15
            if flags != used:
                if flags == used - 1 or not flags:
                    # The chunk before is free, and its size must be repeated here.
                    if not word or feet[unit] != (unit - previous) << _SHIFT:
                        break
                    add_free(previous + shift)
                    add_length(unit - previous)
                elif flags != _PREVIOUS_IN_USE:
                    break
            length = word >> _SHIFT
            if length < 2:
                break
            add(unit + shift)
            previous = unit
            unit += length
        return unit

    def _fence(self, words: memoryview, position: int, start: int) -> int:
        """Where chunks go on behind a fencepost at ``position``; 0 where there is no fencepost."""
        index = (position - start) // 8
        size = words[index + 1] & ~7
        behind = words[index + 3] & ~7 if index + 3 < len(words) else 0
        if not words[index + 1] or size > UNIT or behind not in (0, UNIT):
            return 0
        near_end = self.region.end - position <= 4 * UNIT
        if near_end and not self._expects_top:
            return self._gap(position, self.region.end)
        if not self.is_main or size != UNIT or behind != UNIT:
            return 0
        if self._ends_at_fence:
            self.region = Region(self.region.start, self.region.first, (position + 2 * UNIT + PAGE - 1) & -PAGE)
            return self._gap(position, self.region.end)
        beginning = self._next_chain(position + 2 * UNIT)
        return self._gap(position, beginning) if beginning else 0

    def _gap(self, start: int, end: int) -> int:
        self.starts.append((start - self.base) >> _SHIFT)
        self.gaps.append((start, end))
        return end

    def _next_chain(self, position: int) -> int:
        """Where malloc's chunks go on behind memory that is not its own; 0 where they do not."""
        patience = _PATIENCE
        while position < self.region.end:
            start = page_of(position)
            words, end = self._read(start, _BLOCK)
            sizes = words[1::2]
            last = (self.region.end - start) >> _SHIFT
            for unit in range((position - start) >> _SHIFT, len(sizes)):
                if sizes[unit] & 15 == _PREVIOUS_IN_USE:
                    is_chain, steps = _chain(sizes, unit, last)
                    if is_chain:
                        return start + unit * UNIT
                    patience -= steps
                    if patience < 0:
                        return 0
            self._budget.step(end - start, 0)
            position = end
        return 0

    def _again(self, position: int) -> int:
        """Go back some chunks; return where to go on, from memory read anew. Raises WalkTorn after many tries."""
        page = page_of(position)
        if position < self.region.end and self._memory.pages(page, page + PAGE).swapped:
            raise WalkRefused("swapped", "part of the heap is swapped out, and reading it would bring it back")
        if abs(position - self._trouble_at) > _SAME_PLACE:
            self._retreats = 0
        self._trouble_at = position
        self._span = _SMALL_BLOCK
        self._retreats += 1
        if self._retreats > (_FEW_RETREATS if self._ends_at_fence else _MAX_RETREATS):
            raise WalkTorn(f"no chunk at {position:#x}")
        return self._back(_RETREAT << self._retreats)

    def _back(self, count: int) -> int:
        """Forget the last ``count`` chunks, and all behind the region's end; return the address where they began."""
        starts = self.starts
        limit = (self.region.end - self.base) >> _SHIFT
        while starts and starts[-1] >= limit:
            starts.pop()
        keep = max(0, len(starts) - count)
        position = self.base + starts[keep] * UNIT if keep < len(starts) else self.base
        del starts[keep:]
        # Whether the last chunk that is kept is free will be told, again, by the one behind it.
        first = starts[-1] if starts else 0
        while self.free and self.free[-1] >= first:
            self.free.pop()
            self.free_lengths.pop()
        while self.gaps and self.gaps[-1][1] > position:
            self.gaps.pop()
        return position


def _chain(sizes: memoryview, unit: int, last: int) -> tuple[bool, int]:
    """Whether chunks lead from ``unit`` to the region's end or out of the block, and in how many steps."""
    steps = 0
    while unit < len(sizes):
        if unit >= last:
            return unit == last, steps
        word = sizes[unit]
        if word >> _SHIFT < 2 or word & 14:
            # Fenceposts end a region as well as its end does; two of these do not stand there by chance.
            return steps > 0 and word >> _SHIFT == 1 and unit + 1 < len(sizes) and sizes[unit + 1] >> _SHIFT == 1, steps
        unit += word >> _SHIFT
        steps += 1
    return unit <= last, steps
