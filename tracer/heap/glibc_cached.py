"""Blocks that were freed but still look in use: in fastbins, and in the caches that glibc keeps for each thread.

Both are lists through the freed blocks themselves; from glibc 2.32 on the links are mangled with their own address
(safe-linking). A thread's cache hangs on a table in a chunk of a known size, which is told from a program's own block
of that size by its lists: each leads through chunks in use of the one size that belongs there.
Source: malloc/malloc.c (tcache_perthread_struct, fastbin, PROTECT_PTR), glibc 2.30 to 2.43.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from struct import Struct

from tracer.heap.glibc_arenas import Arena
from tracer.heap.heap_index import BLOCK_OFFSET, RegionIndex
from tracer.heap.target_memory import TargetMemory

_SMALL_BINS = 64
_FIRST_SIZE, _SIZE_STEP = 32, 16
# Of the candidates for caches so many are looked into.
_MAX_CANDIDATES = 20_000
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


@dataclass(slots=True)
class Cached:
    """Chunks by where they wait, and the chunks that hold the tables of caches."""

    fast: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    tables: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Lookup:
    """The chunks in use of all regions by address."""

    def __init__(self, regions: Sequence[RegionIndex]) -> None:
        self.regions = sorted(regions, key=lambda each: each.region.start)
        self._starts = [each.region.start for each in self.regions]

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


def find_cached(memory: TargetMemory, arenas: Iterable[Arena], lookup: Lookup, cache_count: int) -> Cached:
    """All chunks in fastbins and threads' caches.

    ``cache_count`` is malloc's limit of blocks in each list of a cache, 0 where it is not known.
    """
    found = Cached()
    links = _Links(lambda chunk: lookup.size_of(chunk) > 0)
    seen: set[int] = set()
    for arena in arenas:
        for position, head in enumerate(arena.fastbins):
            if head:
                _follow_fastbin(memory, head, _FIRST_SIZE + _SIZE_STEP * position, lookup, links, found, seen)
    for shape in _SHAPES:
        _find_tables(memory, shape, lookup, links, cache_count, found, seen)
    found.fast.sort()
    found.cached.sort()
    found.tables.sort()
    return found


def _follow_fastbin(
    memory: TargetMemory, head: int, size: int, lookup: Lookup, links: _Links, found: Cached, seen: set[int]
) -> None:
    words = _Words(memory)
    chunk = head
    while chunk:
        if chunk in seen or lookup.size_of(chunk) != size:
            _note(found, "a list of freed small blocks changed while it was read: some count as in use")
            return
        seen.add(chunk)
        found.fast.append(chunk)
        position = chunk + BLOCK_OFFSET
        chunk = links.follow(position, words.read(position), 0)


def _find_tables(
    memory: TargetMemory,
    shape: _TableShape,
    lookup: Lookup,
    links: _Links,
    cache_count: int,
    found: Cached,
    seen: set[int],
) -> None:
    candidates = [
        chunk
        for region in lookup.regions
        for chunk in region.of_sizes(shape.chunk_sizes)
        if lookup.size_of(chunk) and chunk not in seen
    ]
    limit = cache_count or 0xFFFF
    for chunk in _likely(memory, candidates, limit):
        if len(found.tables) + len(found.notes) > _MAX_CANDIDATES:
            break
        raw = memory.gather([chunk + BLOCK_OFFSET], shape.table.size)
        values = shape.table.unpack(raw)
        lists = _lists(values[: shape.bins], values[shape.bins :], shape, limit, lookup)
        if lists:
            found.tables.append(chunk)
            _follow_lists(memory, lists, lookup, links, found, seen)


def _likely(memory: TargetMemory, candidates: Sequence[int], limit: int) -> Iterator[int]:
    """Those whose first four counts could be counts."""
    heads = memory.gather([chunk + BLOCK_OFFSET for chunk in candidates], 8)
    for chunk, counts in zip(candidates, Struct("=4H").iter_unpack(heads), strict=True):
        if max(counts) <= limit:
            yield chunk


@dataclass(frozen=True, slots=True)
class _List:
    head: int
    size: int  # of its chunks; 0 where they differ
    length: int


def _lists(
    counts: Sequence[int], heads: Sequence[int], shape: _TableShape, limit: int, lookup: Lookup
) -> list[_List] | None:
    """The lists of a cache; None or empty where the numbers are no cache's, or one of an empty one."""
    if max(counts) > limit or any(head % 16 for head in heads):
        return None
    if not shape.counts_free and any((count == 0) != (head == 0) for count, head in zip(counts, heads, strict=True)):
        return None
    lists: list[_List] = []
    for position, (count, head) in enumerate(zip(counts, heads, strict=True)):
        if head:
            size = _FIRST_SIZE + _SIZE_STEP * position if position < _SMALL_BINS else 0
            actual = lookup.size_of(head - BLOCK_OFFSET)
            if not actual or (size and actual != size):
                return None
            lists.append(_List(head, size, limit - count if shape.counts_free else count))
    return lists


def _follow_lists(
    memory: TargetMemory, lists: Sequence[_List], lookup: Lookup, links: _Links, found: Cached, seen: set[int]
) -> None:
    """Follow all lists of a cache at once, a block of each at a time."""
    at = [(each, each.head) for each in lists]
    step = 0
    while at:
        step += 1
        reached = [
            (each, block)
            for each, block in at
            if lookup.size_of(block - BLOCK_OFFSET) and block - BLOCK_OFFSET not in seen and step <= each.length
        ]
        found.cached += [block - BLOCK_OFFSET for _, block in reached]
        seen.update(block - BLOCK_OFFSET for _, block in reached)
        words = Struct("=Q").iter_unpack(memory.gather([block for _, block in reached], 8))
        following = [
            (each, links.follow(block, word, BLOCK_OFFSET))
            for (each, block), (word,) in zip(reached, words, strict=True)
        ]
        at = [(each, block) for each, block in following if block]


def _note(found: Cached, text: str) -> None:
    if text not in found.notes:
        found.notes.append(text)


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
