"""Blocks that were freed but still look in use: in fastbins, and in the caches that glibc keeps for each thread.

Both are lists through the freed blocks themselves; from glibc 2.32 on the links are mangled with their own address
(safe-linking). A thread's cache hangs on a table in a chunk of a known size, which is told from a program's own block
of that size by its lists: each leads through chunks in use of the one size that belongs there.
Source: malloc/malloc.c (tcache_perthread_struct, fastbin, PROTECT_PTR), glibc 2.30 to 2.43.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

from tracer.heap.glibc_arenas import Arena
from tracer.heap.glibc_chunks import UNIT
from tracer.heap.heap_index import BLOCK_OFFSET, RegionIndex
from tracer.heap.spans import Run, Spans
from tracer.heap.target_memory import TargetMemory

_SMALL_BINS = 64
_FIRST_SIZE, _SIZE_STEP = 32, 16
# Of the candidates for caches so many are looked into.
_MAX_CANDIDATES = 20_000
# Of a cache's 64 or 76 lists, so many may not fit their count, because they are changed while they are read.
_MAX_WRONG = 3
_LATE_CHECK = 4096
_WORD = Struct("=Q")
_WINDOW = 64 << 10
_MAX_WINDOWS = 512


@dataclass(frozen=True, slots=True)
class _TableShape:
    """tcache_perthread_struct: 16-bit counts, then the heads of the lists; ``counts_free`` slots instead of blocks."""

    table: Struct
    bins: int
    counts_free: bool

    @property
    def chunk_sizes(self) -> tuple[int, int]:
        """Of the chunk that holds it: the least, and the one that is left where no chunk of 16 bytes can remain."""
        size = (self.table.size + 8 + 15) & -16
        return size, size + 16


# Up to 2.41, and from 2.42 on, where larger blocks are cached too.
_SHAPES = (_TableShape(Struct("=64H64Q"), 64, False), _TableShape(Struct("=76H76Q"), 76, True))


@dataclass(frozen=True, slots=True)
class Cached:
    """Chunks by where they wait, and the chunks that hold the tables of caches."""

    fast: Spans
    cached: Spans
    tables: Spans
    notes: Sequence[str]


class Lookup:
    """The chunks in use of all regions by address."""

    def __init__(self, regions: Sequence[RegionIndex]) -> None:
        self.regions = sorted(regions, key=lambda each: each.region.start)
        self._starts = [each.region.start for each in self.regions]
        self.count = sum(each.chunk_count for each in self.regions)

    def size_of(self, chunk: int) -> int:
        """The size of the chunk in use at an address; 0 where none begins."""
        position = bisect_right(self._starts, chunk) - 1
        return self.regions[position].size_of(chunk) if position >= 0 else 0


class _Links:
    """Takes the mangling off links, once the first has shown whether there is any."""

    def __init__(self, is_chunk: Callable[[int], bool]) -> None:
        self._is_chunk = is_chunk
        self._mangled: bool | None = None

    def follow(self, position: int, word: int, offset: int) -> int:
        """What a link at ``position`` leads to; ``offset`` is how far behind a chunk's start links lead."""
        plain, revealed = word, word ^ (position >> 12)
        if self._mangled is None:
            if not revealed or (revealed % 16 == 0 and self._is_chunk(revealed - offset)):
                self._mangled = True
            elif not plain or self._is_chunk(plain - offset):
                self._mangled = False
        return plain if self._mangled is False else revealed


def find_cached(
    memory: TargetMemory, arenas: Iterable[Arena], lookup: Lookup, cache_count: int, is_late: Callable[[], bool]
) -> Cached:
    """All chunks in fastbins and threads' caches.

    ``cache_count`` is malloc's limit of blocks in each list of a cache, 0 where it is not known. ``is_late`` says when
    to stop following lists.
    """
    search = _Search(memory, lookup, cache_count or 0xFFFF, is_late)
    for arena in arenas:
        for position, head in enumerate(arena.fastbins):
            search.follow_fastbin(head, _FIRST_SIZE + _SIZE_STEP * position)
    for shape in _SHAPES:
        search.find_tables(shape)
    return search.result()


@dataclass(frozen=True, slots=True)
class _List:
    """A list of a cache: its first block, the size of its chunks (0: they differ), and how many it may have."""

    head: int
    size: int
    length: int


class _Search:
    """What was found so far; each chunk counts once."""

    def __init__(self, memory: TargetMemory, lookup: Lookup, limit: int, is_late: Callable[[], bool]) -> None:
        self._memory = memory
        self._lookup = lookup
        self._limit = limit
        self._is_late = is_late
        self._links = _Links(lambda chunk: lookup.size_of(chunk) > 0)
        self._seen: set[int] = set()
        self._fast = array("Q")  # there may be millions: each with its size, of 32 to 176, in the four bits that are 0
        self._cached: list[Run] = []
        self._tables: list[Run] = []
        self._notes: list[str] = []

    def result(self) -> Cached:
        """All of it, ascending."""
        packed = sorted(set(self._fast)) if self._notes else sorted(self._fast)
        starts = array("Q", [word & -UNIT for word in packed])
        fast = Spans.of_arrays(starts, array("Q", [(word & UNIT - 1) * UNIT for word in packed]))
        return Cached(fast, Spans(sorted(self._cached)), Spans(sorted(self._tables)), self._notes)

    def follow_fastbin(self, head: int, size: int) -> None:
        """Follow one list of chunks of one size."""
        words = _Words(self._memory)
        chunk = head
        left = self._lookup.count
        while chunk:
            if len(self._fast) % _LATE_CHECK == 0 and self._is_late():
                self._note("the lists of freed small blocks are too long to be read: some of these count as in use")
                return
            # A list that is changed while it is followed can lead anywhere, and in a circle.
            if self._lookup.size_of(chunk) != size or not left:
                self._note("a list of freed small blocks changed while it was read: some of these count as in use")
                return
            left -= 1
            self._fast.append(chunk | size // UNIT)
            position = chunk + BLOCK_OFFSET
            chunk = self._links.follow(position, words.read(position), 0)

    def find_tables(self, shape: _TableShape) -> None:
        """Find the caches of one shape, and what they hold."""
        candidates = [
            (chunk, size)
            for region in self._lookup.regions
            for chunk in region.of_sizes(shape.chunk_sizes)
            if (size := self._lookup.size_of(chunk))
        ]
        for number, (chunk, size) in enumerate(self._likely(candidates)):
            if number > _MAX_CANDIDATES or self._is_late():
                self._note("too many blocks look like a thread's cache: some freed blocks count as in use")
                return
            values = shape.table.unpack(self._memory.gather([chunk + BLOCK_OFFSET], shape.table.size))
            lists = self._lists(values[: shape.bins], values[shape.bins :], shape)
            if lists:
                self._tables.append((chunk, chunk + size))
                self._follow(lists)

    def _likely(self, candidates: Sequence[Run]) -> Iterator[Run]:
        """Those whose first four counts could be counts."""
        heads = self._memory.gather([chunk + BLOCK_OFFSET for chunk, _ in candidates], 8)
        for candidate, counts in zip(candidates, Struct("=4H").iter_unpack(heads), strict=True):
            if max(counts) <= self._limit:
                yield candidate

    def _lists(self, counts: Sequence[int], heads: Sequence[int], shape: _TableShape) -> list[_List]:
        """The lists of a cache; none where the numbers are no cache's, or that of an empty one.

        A little may be wrong with a true one: its thread goes on while it is read.
        """
        if max(counts) > self._limit or any(head % 16 for head in heads):
            return []
        lists: list[_List] = []
        wrong = 0
        for position, (count, head) in enumerate(zip(counts, heads, strict=True)):
            wrong += not shape.counts_free and (count == 0) != (head == 0)
            if head:
                size = _FIRST_SIZE + _SIZE_STEP * position if position < _SMALL_BINS else 0
                lists.append(_List(head, size, self._limit - count if shape.counts_free else count))
        good = [each for each in lists if self._fits(each, each.head)]
        return good if wrong <= _MAX_WRONG and 2 * len(good) > len(lists) else []

    def _fits(self, each: _List, block: int) -> int:
        """The size of the chunk of a block that can be in the list, else 0."""
        size = self._lookup.size_of(block - BLOCK_OFFSET)
        return size if each.size in (0, size) and block - BLOCK_OFFSET not in self._seen else 0

    def _follow(self, lists: Sequence[_List]) -> None:
        """Follow all lists of a cache at once, a block of each at a time."""
        at = [(each, each.head) for each in lists]
        for step in range(1, self._limit + 1):
            reached = [(each, block) for each, block in at if step <= each.length and self._take(each, block)]
            if not reached:
                return
            links = _WORD.iter_unpack(self._memory.gather([block for _, block in reached], 8))
            following = [
                (each, self._links.follow(block, word, BLOCK_OFFSET))
                for (each, block), (word,) in zip(reached, links, strict=True)
            ]
            at = [(each, block) for each, block in following if block]

    def _take(self, each: _List, block: int) -> bool:
        size = self._fits(each, block)
        if size:
            chunk = block - BLOCK_OFFSET
            self._seen.add(chunk)
            self._cached.append((chunk, chunk + size))
        return size > 0

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)


class _Words:
    """Single words, read by the windows around them: lists of freed blocks stay near where they are."""

    def __init__(self, memory: TargetMemory) -> None:
        self._memory = memory
        self._windows: dict[int, memoryview] = {}

    def read(self, address: int) -> int:
        """The word at an address, a multiple of 8; 0 where it cannot be read."""
        start = address & -_WINDOW
        words = self._windows.get(start)
        if words is None:
            if len(self._windows) >= _MAX_WINDOWS:
                del self._windows[next(iter(self._windows))]
            data = memoryview(bytearray(_WINDOW))
            self._memory.fill(data, start, self._memory.pages(start, start + _WINDOW).resident)
            words = self._windows[start] = data.cast("Q")
        return words[(address - start) >> 3]
