"""What allocators leave at the start of the memory that they map: arenas and mmapped chunks of glibc, CPython's arenas.

Sources: glibc malloc/arena.c (struct _heap_info), malloc/malloc.c (struct malloc_chunk), CPython Objects/obmalloc.c
(struct pool_header) and Include/internal/pycore_obmalloc.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import Struct

from tracer.model.class_names import ANONYMOUS, ARENA, MMAPPED, ClassRange

# Size bytes at an address, or None. Should refuse pages that are not resident: reading would bring them in.
ReadMemory = Callable[[int, int], bytes | None]
# The same at many addresses at once.
ReadMany = Callable[[Sequence[int], int], Sequence[bytes | None]]

PYTHON_HEAP = "python heap"

_PAGE = 4096
# HEAP_MAX_SIZE on 64-bit machines.
ARENA_SIZE = 64 << 20
# struct _heap_info: ar_ptr, prev, size, mprotect_size.
_HEAP_INFO = Struct("<4Q")
HEAP_INFO_SIZE = _HEAP_INFO.size
# struct malloc_chunk: mchunk_prev_size, mchunk_size, whose low bits are flags.
_CHUNK = Struct("<2Q")
_CHUNK_FLAGS, _IS_MMAPPED = 7, 2
# CPython 3.10 and newer: arenas of 1 MiB (ARENA_BITS 20), pools of 16 KiB (POOL_BITS 14), sizes in steps of 16 bytes.
_PYTHON_ARENA, _POOL, _POOL_STEP, _POOL_CLASSES, _POOL_HEADER = 1 << 20, 1 << 14, 16, 32, 48
# struct pool_header: count, freeblock, nextpool, prevpool, arenaindex, szidx, nextoffset, maxnextoffset.
_POOL_HEAD = Struct("<4Q4I")
# So many pages are looked at for the next beginning, and no more: memory of another kind has none.
_MAX_MISSES = 1024
_BATCH = 256
# A chunk amid other memory must be one that malloc would map: M_MMAP_THRESHOLD is 128 KiB unless it was set.
_MIN_CHUNK_AMID = 64 << 10
_U32 = (1 << 32) - 1
HEAD_SIZE = _POOL_HEAD.size


def arena_bytes(head: bytes | None, address: int) -> tuple[int, int] | None:
    """The accessible size of a heap of an arena that begins at ``address``, and the address of its arena's state.

    ``head`` are the first bytes there; None where they are of something else. main_arena has no such heap.
    """
    if head is None or len(head) < HEAP_INFO_SIZE:
        return None
    arena, previous, size, accessible = map(int, _HEAP_INFO.unpack_from(head))
    # The arena's own state follows the heap_info of its first heap; a further heap points back to the one before.
    in_first_heap = 0 < arena % ARENA_SIZE < _PAGE
    in_this_heap = arena - arena % ARENA_SIZE == address
    chained = previous % ARENA_SIZE == 0 and (previous == 0) == in_this_heap
    if in_first_heap and chained and 0 < size <= accessible <= ARENA_SIZE and accessible % _PAGE == 0:
        return accessible, arena
    return None


def arenas_within(start: int, end: int, read_many: ReadMany, limit: int = 4096) -> Iterator[ClassRange]:
    """Heaps of arenas between two addresses, each at a multiple of 64 MiB; at most ``limit`` places are looked at."""
    first = (start + ARENA_SIZE - 1) & -ARENA_SIZE
    places = range(first, end, ARENA_SIZE)[:limit]
    for address, head in zip(places, read_many(places, HEAP_INFO_SIZE) if places else (), strict=True):
        if found := arena_bytes(head, address):
            size, arena = found
            yield ClassRange(address, address + size, ARENA, f"arena {arena:#x}")


def chunk_bytes(head: bytes | None, room: int) -> int:
    """The bytes of whole pages of a chunk that malloc got by mmap and that begins a page; 0 for anything else.

    Its size is a number of pages up to glibc 2.42, and 16 bytes less from 2.43; ``room`` bytes must hold it.
    """
    if head is None or len(head) < _CHUNK.size:
        return 0
    # Of memory aligned by memalign, the first word tells how far the chunk is from the start of its mapping.
    before, word = _CHUNK.unpack_from(head)
    size = word & ~_CHUNK_FLAGS
    if before or word & _CHUNK_FLAGS != _IS_MMAPPED or size % _PAGE not in (0, _PAGE - 16):
        return 0
    pages: int = (size + _PAGE - 1) & -_PAGE
    return pages if 0 < pages <= room else 0


def python_pool_arena(head: bytes | None, address: int) -> int | None:
    """The index of the arena to which a pool of CPython's small objects belongs; None where no pool begins there.

    ``head`` are the first bytes at ``address``. A pool that was never used has not been written to.
    """
    if head is None or len(head) < _POOL_HEAD.size or address % _POOL:
        return None
    count, free, _, _, arena, size_class, following, last = map(int, _POOL_HEAD.unpack_from(head))
    size = (size_class + 1) * _POOL_STEP
    if size_class >= _POOL_CLASSES or last != _POOL - size or count & _U32 > _POOL // size:
        return None
    in_step = _POOL_HEADER <= following <= _POOL and (following - _POOL_HEADER) % size == 0
    return arena if in_step and (not free or address < free < address + _POOL) else None


class HeapWalk:
    """Walks anonymous memory from chunk to chunk, since neighbouring mappings are one VMA."""

    def __init__(self, read_many: ReadMany, *, python: bool = False, budget: int = 16 * _MAX_MISSES) -> None:
        """``python`` is set where CPython runs in the process; ``budget`` is how many pages may be read for nothing."""
        self._read_many = read_many
        self._python = python
        self._budget = budget

    def walk(self, start: int, end: int, first: bytes | None) -> Iterator[ClassRange]:
        """What is known between two addresses; ``first`` are the first HEAD_SIZE bytes there, if they can be read."""
        position, head = start, first
        while position < end:
            found = self._at(position, end, head) or self._look_further(position + _PAGE, end)
            if found is None:
                return
            yield found
            position = found.end
            head = self._read_many((position,), HEAD_SIZE)[0] if position < end else None

    def _at(self, position: int, end: int, head: bytes | None) -> ClassRange | None:
        """What begins at an address where a mapping may begin."""
        if size := chunk_bytes(head, end - position):
            return ClassRange(position, position + size, MMAPPED)
        if self._python and end - position >= _PYTHON_ARENA:
            # The pools of an arena begin at multiples of their size; the first is the first to be used.
            pool = (position + _POOL - 1) & -_POOL
            if python_pool_arena(self._read_many((pool,), HEAD_SIZE)[0], pool) is not None:
                return ClassRange(position, position + _PYTHON_ARENA, ANONYMOUS, PYTHON_HEAP)
        return None

    def _look_further(self, position: int, end: int) -> ClassRange | None:
        """The next thing that begins at a page boundary, but not at one where a mapping must begin."""
        stop = min(end, position + min(_MAX_MISSES, self._budget) * _PAGE)
        while position < stop:
            places = range(position, min(stop, position + _BATCH * _PAGE), _PAGE)
            self._budget -= len(places)
            for place, head in zip(places, self._read_many(places, HEAD_SIZE), strict=True):
                size = chunk_bytes(head, end - place)
                if size >= _MIN_CHUNK_AMID:
                    return ClassRange(place, place + size, MMAPPED)
                if self._python and python_pool_arena(head, place) is not None:
                    return ClassRange(place, place + _POOL, ANONYMOUS, PYTHON_HEAP)
            position = places[-1] + _PAGE
        return None
