"""Finding glibc malloc's arenas in a process from outside, without symbols.

An arena's array of bins is full of pointers to itself: an empty bin's two links lead 16 bytes before it. That finds
main_arena in the writable data of libc.so, or of a static executable; every arena is in a ring of ``next`` pointers,
and one that is not main lies behind the header of a heap that names it. Sources: malloc/malloc.c (struct
malloc_state), malloc/arena.c (struct _heap_info), glibc 2.27 to 2.43 on 64-bit machines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

from tracer.heap.heap_walk import WalkRefused
from tracer.heap.target_memory import TargetMemory, page_of, read_words
from tracer.model.vma import Vma
from tracer.procfs.pagescan import PAGE

_LIBC = re.compile(rb".*/libc(-2\.\d+)?\.so(\.6)?( \(deleted\))?")
# Beyond this no data section is searched: some programs have gigabytes of it.
_MAX_DATA = 256 << 20
_BIN_WORDS = 254
_MAX_ARENAS = 8192
# malloc_state.flags.
_NONCONTIGUOUS = 2
# malloc_state from its bins on: bins, binmap, next, next_free, attached_threads, system_mem, max_system_mem.
_NEXT, _SYSTEM, _MAX_SYSTEM, _BINS_TO_END = 2048, 2072, 2080, 2088
# The size of struct _heap_info, at the start of each heap: four words, and from 2.35 on two more.
_HEAP_HEADERS = (32, 48)
_HEAP_INFO = Struct("=4Q")
# HEAP_MAX_SIZE, and four huge pages of 2 MiB and of 1 GiB with glibc.malloc.hugetlb=2.
_HEAP_SIZES = (64 << 20, 8 << 20, 4 << 30)
_MAX_HEAPS = 1 << 16


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """Where things are in struct malloc_state, which follows from the offset of its bins.

    That is 112 up to glibc 2.42, and 24 in 2.43, which has no fastbins.
    """

    bins: int

    @property
    def has_fastbins(self) -> bool:
        """True where ten heads of fastbins stand at offset 16."""
        return self.bins == 112

    @property
    def size(self) -> int:
        """Bytes of the struct."""
        return self.bins + _BINS_TO_END


_LAYOUTS = (ArenaLayout(112), ArenaLayout(24))


@dataclass(frozen=True, slots=True)
class Arena:
    """One arena's struct as it was read; ``raw`` tells whether it changed since. Sizes in bytes."""

    address: int
    layout: ArenaLayout
    raw: bytes

    @property
    def is_contiguous(self) -> bool:
        """False for a main arena that the program break could not be grown for, and for all other arenas."""
        return not int.from_bytes(self.raw[4:8], "little") & _NONCONTIGUOUS

    @property
    def fastbins(self) -> tuple[int, ...]:
        """The first chunk of each fastbin, 0 where it is empty."""
        return tuple(self._word(16 + 8 * index) for index in range(10)) if self.layout.has_fastbins else ()

    @property
    def top(self) -> int:
        """The chunk at the end of the arena's newest memory, from which new blocks are cut; 0 before the first."""
        top = self._word(self.layout.bins - 16)
        return 0 if top == self.address + self.layout.bins - 16 else top

    @property
    def following(self) -> int:
        """The next arena in the ring."""
        return self._word(self.layout.bins + _NEXT)

    @property
    def system(self) -> int:
        """Bytes that it has from the kernel."""
        return self._word(self.layout.bins + _SYSTEM)

    @property
    def max_system(self) -> int:
        """The most that ``system`` ever was."""
        return self._word(self.layout.bins + _MAX_SYSTEM)

    def _word(self, offset: int) -> int:
        return int.from_bytes(self.raw[offset : offset + 8], "little")


@dataclass(frozen=True, slots=True)
class Region:
    """A range of an arena's memory, whose chunks begin at ``first``; ``end`` excluded."""

    start: int
    first: int
    end: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Arenas:
    """The ring of arenas, main_arena first, and the data (address, words) that it was found in."""

    main: Arena
    others: tuple[Arena, ...]
    data: tuple[tuple[int, memoryview], ...]

    def __iter__(self) -> Iterator[Arena]:
        yield self.main
        yield from self.others


def find_arenas(memory: TargetMemory, vmas: Sequence[Vma]) -> Arenas:
    """The arenas of the process. Raises WalkRefused where it has none, or its data are too large to be searched."""
    ranges = list(_data_ranges(vmas))
    in_libc = [(start, end) for start, end, path in ranges if _LIBC.fullmatch(path)]
    searched = 0
    for start, end in in_libc or [(start, end) for start, end, _ in ranges]:
        searched += end - start
        if searched > _MAX_DATA:
            break
        data = read_words(memory, start, end)
        for low, words in data:
            found = _ring_in(memory, low, words)
            if found:
                return Arenas(found[0], tuple(found[1:]), tuple(data))
    raise WalkRefused("no-glibc-heap", "no heap of glibc's malloc was found in the process")


def read_arena(memory: TargetMemory, address: int, layout: ArenaLayout) -> Arena:
    """An arena as it is now; ``address`` must be known to be one."""
    return Arena(address, layout, memory.gather([address], layout.size))


def heaps_of(memory: TargetMemory, arena: Arena) -> list[Region]:
    """The heaps of an arena that is not main, the oldest first; empty where the chain of their headers is broken."""
    heap = _heap_of_top(memory, arena)
    regions: list[Region] = []
    while heap and len(regions) < _MAX_HEAPS:
        head = _read(memory, heap, _HEAP_INFO.size)
        owner, previous, size, _ = _HEAP_INFO.unpack(head) if head else (0, 0, 0, 0)
        if owner != arena.address or size % PAGE or not 0 < size <= max(_HEAP_SIZES) or previous % PAGE:
            return []
        is_first = page_of(arena.address) == heap
        first = arena.address + arena.layout.size if is_first else heap + arena.address % PAGE
        regions.append(Region(heap, (first + 15) & -16, heap + size))
        heap = previous
    return regions[::-1]


def main_region(memory: TargetMemory, arena: Arena) -> Region | None:
    """The memory of a main arena that is contiguous; None where its top cannot be read.

    malloc's own invariant (do_check_malloc_state): what it has from the kernel ends where the top chunk ends.
    """
    head = _read(memory, arena.top + 8, 8)
    if head is None:
        return None
    end = arena.top + (int.from_bytes(head, "little") & ~15)
    start = end - arena.system
    if not 0 < start <= arena.top < end:
        return None
    return Region(start, (start + 15) & -16, end)


def _data_ranges(vmas: Sequence[Vma]) -> Iterator[tuple[int, int, bytes]]:
    """Writable data of mapped files, with the anonymous memory (.bss) right behind: start, end, path."""
    for index, vma in enumerate(vmas):
        if vma.perms != "rw-p" or not vma.is_file or vma.path.startswith(b"/dev/"):
            continue
        end = vma.end
        following = vmas[index + 1] if index + 1 < len(vmas) else None
        if following and following.start == end and following.perms == "rw-p" and not following.path:
            end = following.end
        yield vma.start, end, vma.path


def _ring_in(memory: TargetMemory, start: int, words: memoryview) -> list[Arena]:
    """The arenas, if main_arena is in these words; else nothing."""
    for cluster in _clusters(_self_pairs(start, words)):
        for bins in range(max(2, cluster[-1] - (_BIN_WORDS - 2)), cluster[0] + 1, 2):
            if bins + _BINS_TO_END // 8 > len(words):
                break
            for layout in _LAYOUTS:
                address = start + 8 * bins - layout.bins
                ring = _ring(memory, read_arena(memory, address, layout)) if address >= start else []
                if ring:
                    return ring
    return []


def _self_pairs(start: int, words: memoryview) -> list[int]:
    """Indexes of words that hold, as the next word does, the address 16 bytes before them: empty bins."""
    base = start - 16
    hits = [index for index, word in enumerate(words) if word == base + 8 * index]
    return [index for index in hits if index + 1 < len(words) and words[index + 1] == words[index]]


def _clusters(pairs: Iterable[int]) -> Iterator[list[int]]:
    """Groups of at least three that can be bins of one arena."""
    cluster: list[int] = []
    for index in pairs:
        if cluster and (index - cluster[0] > _BIN_WORDS - 2 or (index - cluster[0]) % 2):
            if len(cluster) >= 3:
                yield cluster
            cluster = []
        cluster.append(index)
    if len(cluster) >= 3:
        yield cluster


def _ring(memory: TargetMemory, main: Arena) -> list[Arena]:
    """The arenas from main_arena around to it again; empty where that is no ring of arenas."""
    if main.system > main.max_system or main.top % 16 or not main.following:
        return []
    arenas = [main]
    while (address := arenas[-1].following) != main.address:
        head = _read(memory, page_of(address), _HEAP_INFO.size) if address % PAGE in _HEAP_HEADERS else None
        if head is None or _HEAP_INFO.unpack(head)[0] != address or len(arenas) >= _MAX_ARENAS:
            return []
        arenas.append(read_arena(memory, address, main.layout))
    return arenas


def _heap_of_top(memory: TargetMemory, arena: Arena) -> int:
    """The heap that holds the arena's top; 0 where none does."""
    for size in _HEAP_SIZES:
        heap = arena.top & -size
        head = _read(memory, heap, _HEAP_INFO.size)
        if head is not None and _HEAP_INFO.unpack(head)[0] == arena.address:
            return heap
    return 0


def _read(memory: TargetMemory, address: int, size: int) -> bytes | None:
    """``size`` bytes at an address that may be anything; None where it is not all resident."""
    if not 0 < address < (1 << 47):
        return None
    low, high = page_of(address), page_of(address + size - 1) + PAGE
    if memory.pages(low, high).resident != ((low, high),):
        return None
    return memory.gather([address], size)
