"""What malloc_trim(0) would give back to the kernel.

It merges the blocks of fastbins with their neighbours, then drops the whole pages inside each free chunk, behind the
chunk's links, and cuts off the end of the main arena's top; threads' caches, and the tops of other arenas, stay.
Source: malloc/malloc.c (mtrim, systrim).
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge

from tracer.heap.heap_index import UseIndex
from tracer.heap.spans import Run, joined
from tracer.procfs.pagescan import PAGE

# sizeof (struct malloc_chunk): size words and four links, which stay.
_LINKS = 48
_MIN_TOP = 32


def returnable(use: UseIndex, *, can_cut_top: bool, is_locked: bool = False, top_page: int = PAGE) -> int:
    """Resident bytes of a region that a trim would return.

    ``can_cut_top``: the region ends at the program break. ``is_locked``: by mlock, so that the kernel refuses to drop
    pages. ``top_page`` is the unit in which the top is cut off.
    """
    top_start, top_end = use.index.top
    size = 0
    for start, end in _free_runs(use):
        if end == top_start < top_end:
            top_start = start
            continue
        low, high = (start + _LINKS + PAGE - 1) & -PAGE, end & -PAGE
        size += 0 if is_locked else use.resident.within(low, high)
    cut = (top_end - top_start - _MIN_TOP - 1) // top_page * top_page
    if can_cut_top and cut > 0:
        size += use.resident.within(top_end - cut, top_end)
    return size


def _free_runs(use: UseIndex) -> Iterator[Run]:
    """The free chunks as they are once those of fastbins have joined their neighbours."""
    if len(use.fast.spans):
        return joined(merge(use.free.spans, use.fast.spans))
    return use.free.spans.longer_than(PAGE - 1 + _LINKS)
