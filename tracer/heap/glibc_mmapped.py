"""Finding the chunks that glibc malloc mapped one by one: large blocks, each with a mapping of its own.

malloc counts them but keeps no list. Each begins with a header of its own flag, at the start of its mapping, or
further on where an alignment was asked for; the kernel merges neighbouring mappings, so a header may stand at any
page. Source: malloc/malloc.c (sysmalloc_mmap, _int_memalign), glibc 2.27 to 2.43.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from struct import Struct

from tracer.heap.heap_index import BLOCK_OFFSET, MappedChunk
from tracer.heap.spans import Run, gaps
from tracer.heap.target_memory import TargetMemory
from tracer.model.vma import Vma
from tracer.procfs.pagescan import PAGE

_HEADER = 16
_WORDS = Struct("=2Q")
_IS_MMAPPED, _FLAGS, _MMAP_HP = 2, 7, 1
# Where in its page a header stands: for no alignment, then for those of 32 to 2048, and of a page or more.
_OFFSETS = (0, *((16 << power) - 16 for power in range(1, 8)), PAGE - 16)


def find_mmapped(
    memory: TargetMemory, vmas: Sequence[Vma], count: int, taken: Sequence[Run], is_late: Callable[[], bool]
) -> list[MappedChunk]:
    """Mapped chunks, until all ``count`` of them are found, ascending.

    ``taken`` are the ascending ranges that belong to arenas, ``is_late`` says when to stop looking.
    """
    ranges = [run for vma in vmas if _may_hold(vma) for run in gaps(taken, vma.start, vma.end)]
    ranges = [(start, end) for start, end in ranges if start < end]
    found: dict[int, MappedChunk] = {}
    if not count:
        return []
    for start, end in ranges:
        _follow(memory, start, end, found)
    for offset in _OFFSETS:
        if len(found) >= count or is_late():
            break
        for start, end in ranges:
            _scan(memory, start, end, offset, found)
    return [found[start] for start in sorted(found)]


def _may_hold(vma: Vma) -> bool:
    named = bool(vma.path) and vma.path != b"[anon: glibc: malloc]"
    return vma.perms == "rw-p" and not vma.is_file and not named


def _follow(memory: TargetMemory, start: int, end: int, found: dict[int, MappedChunk]) -> None:
    """Chunks one after another from the start of a VMA: most often that is all of them."""
    while start < end and memory.pages(start, start + PAGE).resident:
        previous, size = _WORDS.unpack(memory.gather([start], _HEADER))
        chunk = mapped_chunk(previous, size, start, end)
        if chunk is None:
            return
        found[chunk.start] = chunk
        start = chunk.end


def _scan(memory: TargetMemory, start: int, end: int, offset: int, found: dict[int, MappedChunk]) -> None:
    """Look at ``offset`` into each resident page that no chunk has yet."""
    skip_to = start
    for page, previous, size in _headers(memory, start, end, offset):
        if page < skip_to:
            continue
        chunk = found.get(page) or mapped_chunk(previous, size, page + offset, end)
        if chunk is not None and chunk.start >= start and chunk.end <= end:
            found[chunk.start] = chunk
            skip_to = chunk.end


def _headers(memory: TargetMemory, start: int, end: int, offset: int) -> Iterator[tuple[int, int, int]]:
    """The page and the two words of each header that could be one's."""
    for low, high in memory.pages(start, end).resident:
        pages = range(low, high, PAGE)
        words = array("Q", memory.gather(range(low + offset, high + offset, PAGE), _HEADER))
        for page, previous, size in zip(pages, words[0::2], words[1::2], strict=True):
            if size & _FLAGS == _IS_MMAPPED:
                yield page, previous, size


def mapped_chunk(previous: int, size_word: int, address: int, limit: int) -> MappedChunk | None:
    """The mapped chunk with these two header words at ``address``, if it is one that ends by ``limit``.

    Up to 2.42 the size reaches to the end of the mapping; 2.43 leaves 16 bytes there, as a successor's header.
    """
    offset = previous & ~_MMAP_HP
    size = size_word & ~_FLAGS
    start = address - offset
    if size_word & _FLAGS != _IS_MMAPPED or size < PAGE // 2 or offset % 16 or start % PAGE or start <= 0:
        return None
    for behind in (0, _HEADER):
        end = address + size + behind
        if end % PAGE == 0 and end <= limit:
            return MappedChunk(start, end, address + BLOCK_OFFSET, size - (8 if behind else BLOCK_OFFSET))
    return None


def resident_of(memory: TargetMemory, chunks: Sequence[MappedChunk]) -> list[Run]:
    """What of the chunks' mappings is resident, ascending."""
    return [run for chunk in chunks for run in memory.pages(chunk.start, chunk.end).resident]
