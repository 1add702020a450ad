"""All chunks of a walked heap, to be asked by address: what lies there, and what of a range is resident."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tracer.heap.glibc_arenas import Region
from tracer.heap.glibc_chunks import UNIT, RegionWalk
from tracer.heap.heap_walk import Chunk, RangeUse
from tracer.heap.spans import Run, Spans, gaps

# A chunk in use takes its size word from its block; the word before it is the block's own or its predecessor's.
CHUNK_HEADER = 8
BLOCK_OFFSET = 16


@dataclass(frozen=True, slots=True)
class Kind:
    """Ranges of one use, and what of them is not resident."""

    spans: Spans
    absent: Spans

    @classmethod
    def of(cls, spans: Spans, holes: Iterable[Run]) -> Kind:
        """``holes`` are the ranges that are not resident, ascending."""
        return cls(spans, Spans(part for low, high in holes for part in spans.parts(low, high)))

    def resident(self, start: int, end: int) -> int:
        """Resident bytes of this use between two addresses."""
        return self.spans.within(start, end) - self.absent.within(start, end)


@dataclass(frozen=True, slots=True)
class MappedChunk:
    """A chunk with a mapping of its own, ``start`` to ``end``; ``block`` is what malloc returned, of ``size`` bytes."""

    start: int
    end: int
    block: int
    size: int


class RegionIndex:
    """The chunks of one region of an arena."""

    def __init__(self, walk: RegionWalk) -> None:
        """Take over what a finished walk has found."""
        self.region: Region = walk.region
        self.is_main = walk.is_main
        self._base = walk.base
        self._starts = walk.starts
        self._starts.append((walk.region.end - walk.base) // UNIT)
        starts = array("Q", [walk.base + unit * UNIT for unit in walk.free])
        self.free = Spans.of_arrays(starts, array("Q", [units * UNIT for units in walk.free_lengths]))
        self.gaps = tuple(walk.gaps)
        last = walk.base + self._starts[-2] * UNIT
        self.top: Run = (last, walk.region.end) if walk.has_top else (walk.region.end, walk.region.end)
        self._not_chunks = frozenset((self.top[0], *(start for start, _ in self.gaps)))

    @property
    def chunk_count(self) -> int:
        """Chunks in use or free, without the top."""
        return len(self._starts) - 1 - len(self.gaps) - (self.top[0] < self.top[1])

    @property
    def foreign(self) -> int:
        """Bytes between malloc's chunks that are another user's of the program break."""
        return sum(end - start for start, end in self.gaps if end - start > 4 * UNIT)

    def size_of(self, chunk: int) -> int:
        """The size of the chunk in use that begins at an address; 0 where none does."""
        offset = chunk - self._base
        if offset < 0 or offset % UNIT:
            return 0
        unit = offset // UNIT
        index = bisect_left(self._starts, unit)
        if index >= len(self._starts) - 1 or self._starts[index] != unit:
            return 0
        if chunk in self._not_chunks or self.free.length_at(chunk):
            return 0
        return (self._starts[index + 1] - unit) * UNIT

    def free_size_of(self, chunk: int) -> int:
        """The size of the free chunk that begins at an address; 0 where none does."""
        return self.free.length_at(chunk)

    def of_sizes(self, sizes: Sequence[int]) -> list[int]:
        """Where chunks of these sizes begin; free ones among them."""
        wanted = frozenset(size // UNIT for size in sizes)
        starts = self._starts
        base = self._base
        found: list[int] = []
        previous = starts[0]
        for unit in starts:
            if unit - previous in wanted:
                found.append(base + previous * UNIT)
            previous = unit
        return found

    def used_within(self, start: int, end: int) -> int:
        """How many chunks in use, cached ones among them, begin between two addresses."""
        low = bisect_left(self._starts, -((self._base - start) // UNIT))
        high = min(bisect_left(self._starts, -((self._base - end) // UNIT)), len(self._starts) - 1)
        others = self.free.starting_within(start, end) + sum(start <= gap < end for gap, _ in self.gaps)
        return max(0, high - low) - others - (self.top[0] < self.top[1] and start <= self.top[0] < end)


class UseIndex:
    """One region's chunks by use, with what of them is resident."""

    def __init__(self, index: RegionIndex, resident: Sequence[Run], fast: Spans, cached: Spans, tables: Spans) -> None:
        """``resident`` are the region's resident parts; the other ranges are chunks that lie in the region."""
        region = index.region
        self.index = index
        self.resident = Spans(resident)
        holes = list(gaps(resident, region.start, region.end))
        holes = [(low, high) for low, high in holes if low < high]
        own = sorted([(region.start, region.first), *index.gaps, *tables])
        self.free = Kind.of(index.free, holes)
        self.fast = Kind.of(fast, holes)
        self.cached = Kind.of(cached, holes)
        self.top = Kind.of(Spans([index.top]), holes)
        self.overhead = Kind.of(Spans((low, high) for low, high in own if low < high), holes)
        self._tables = tables

    def headers(self, start: int, end: int) -> int:
        """Bytes of the size words of the chunks in use that begin between two addresses."""
        others = sum(spans.starting_within(start, end) for spans in (self.fast.spans, self.cached.spans, self._tables))
        return CHUNK_HEADER * (self.index.used_within(start, end) - others)

    def within(self, start: int, end: int) -> RangeUse:
        """Resident bytes between two addresses by use."""
        region = self.index.region
        start, end = max(start, region.start), min(end, region.end)
        if start >= end:
            return RangeUse()
        free, fast, cached, top, own = (
            kind.resident(start, end) for kind in (self.free, self.fast, self.cached, self.top, self.overhead)
        )
        overhead = own + self.headers(start, end)
        live = self.resident.within(start, end) - free - fast - cached - top - overhead
        return RangeUse(live, free, fast, cached, top, overhead)


class HeapIndex:
    """All regions and mapped chunks of a heap."""

    def __init__(self, regions: Sequence[UseIndex], mapped: Sequence[MappedChunk], mapped_resident: Spans) -> None:
        """``mapped_resident`` is what of the mapped chunks is resident."""
        self._regions = sorted(regions, key=lambda use: use.index.region.start)
        self._starts = [use.index.region.start for use in self._regions]
        self._mapped = {chunk.block: chunk for chunk in mapped}
        self._mapped_resident = mapped_resident

    def within(self, start: int, end: int) -> RangeUse:
        """Resident bytes between two addresses by use."""
        found = RangeUse(mapped=self._mapped_resident.within(start, end))
        first = max(0, bisect_right(self._starts, start) - 1)
        for use in self._regions[first:]:
            if use.index.region.start >= end:
                break
            found += use.within(start, end)
        return found

    def free_ranges(self, start: int, end: int) -> Iterator[Run]:
        """The free chunks (in bins) of a range, ascending."""
        for use in self._regions:
            yield from use.free.spans.parts(start, end)

    def is_arena_memory(self, address: int) -> bool:
        """Whether the address lies in memory of an arena."""
        return self._at(address) is not None

    def chunk_at(self, block: int) -> Chunk | None:
        """The chunk whose block begins at an address."""
        mapped = self._mapped.get(block)
        if mapped is not None:
            return Chunk(block, mapped.size, "mapped")
        use = self._at(block - BLOCK_OFFSET)
        if use is None:
            return None
        chunk = block - BLOCK_OFFSET
        size = use.index.size_of(chunk)
        if size and use.cached.spans.holds(chunk):
            return Chunk(block, size - CHUNK_HEADER, "cached")
        if size and use.fast.spans.holds(chunk):
            return Chunk(block, size - CHUNK_HEADER, "fast")
        if size:
            return Chunk(block, size - CHUNK_HEADER, "in use")
        size = use.index.free_size_of(chunk)
        return Chunk(block, size - CHUNK_HEADER, "free") if size else None

    def _at(self, address: int) -> UseIndex | None:
        position = bisect_right(self._starts, address) - 1
        if position < 0 or address >= self._regions[position].index.region.end:
            return None
        return self._regions[position]
