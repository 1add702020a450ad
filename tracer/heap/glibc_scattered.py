"""Walking a main arena that is made of several mappings, because something stands in the way of the program break.

No list names its regions. Each begins at a page, in anonymous memory that the kernel may have merged with other, and
ends with fenceposts, or with the top. They are looked for page by page, and must add up to what the arena has.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence

from tracer.heap.glibc_arenas import Arena, Region, main_region, read_arena
from tracer.heap.glibc_chunks import Budget, RegionWalk, WalkTorn
from tracer.heap.glibc_mmapped import mapped_chunk
from tracer.heap.heap_walk import WalkRefused
from tracer.heap.target_memory import TargetMemory
from tracer.model.vma import Vma
from tracer.procfs.pagescan import PAGE

_ROUNDS = 5
_HEADER = 16
_ANONYMOUS = (b"", b"[heap]", b"[anon: glibc: malloc]")


def walk_scattered(
    memory: TargetMemory, arena: Arena, vmas: Sequence[Vma], heaps: Collection[int], budget: Budget
) -> tuple[Arena, tuple[RegionWalk, ...]]:
    """The arena as it was last read, and its regions; raises WalkRefused where these do not add up to it.

    ``heaps`` are the addresses of other arenas' heaps, which are left out.
    """
    candidates = [vma for vma in vmas if _may_hold(vma) and vma.start not in heaps]
    for _ in range(_ROUNDS):
        before = read_arena(memory, arena.address, arena.layout)
        top = main_region(memory, before) if before.top else None
        walks = [walk for vma in candidates for walk in _walks_in(memory, vma, before.top, top, budget)]
        after = read_arena(memory, arena.address, arena.layout)
        if before.system == after.system == sum(walk.region.size for walk in walks):
            return after, tuple(walks)
    raise WalkRefused("changing", "the main arena is made of several mappings, and not all of them were found")


def _may_hold(vma: Vma) -> bool:
    return vma.perms == "rw-p" and not vma.is_file and vma.path in _ANONYMOUS


def _walks_in(
    memory: TargetMemory, vma: Vma, top: int, end_of_top: Region | None, budget: Budget
) -> Iterator[RegionWalk]:
    """The regions in one VMA."""
    skip_to = vma.start
    for page, previous, size in _page_starts(memory, vma):
        if page < skip_to:
            continue
        mapped = mapped_chunk(previous, size, page, vma.end)
        if mapped is not None:
            skip_to = mapped.end
        elif size & 15 == 1 and 32 <= size & -16 <= vma.end - page:
            holds_top = end_of_top is not None and page <= top < vma.end
            end = end_of_top.end if end_of_top and holds_top else vma.end
            walk = _walk_from(memory, Region(page, page, end), holds_top, budget)
            if walk is not None:
                skip_to = walk.region.end
                yield walk


def _walk_from(memory: TargetMemory, region: Region, holds_top: bool, budget: Budget) -> RegionWalk | None:
    walk = RegionWalk(memory, region, is_main=True, budget=budget, ends_at_fence=True)
    try:
        if not walk.begins_well():
            return None
        walk.run(region, holds_top=holds_top)
    except WalkTorn:
        return None
    return walk


def _page_starts(memory: TargetMemory, vma: Vma) -> Iterator[tuple[int, int, int]]:
    """Each resident page, with the two words that it begins with."""
    for low, high in memory.pages(vma.start, vma.end).resident:
        pages = range(low, high, PAGE)
        words = array("Q", memory.gather(pages, _HEADER))
        yield from zip(pages, words[0::2], words[1::2], strict=True)
