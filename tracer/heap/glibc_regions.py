"""Walking all regions of each arena until they add up to what the arena says that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracer.heap.glibc_arenas import Arena, Arenas, Region, heaps_of, main_region, read_arena
from tracer.heap.glibc_chunks import Budget, RegionWalk, WalkTorn
from tracer.heap.glibc_scattered import walk_scattered
from tracer.heap.heap_walk import WalkRefused
from tracer.heap.target_memory import TargetMemory
from tracer.model.vma import Vma

# An arena that grows all the time needs a few rounds, each of which walks only what is new.
_ROUNDS = 40
# How often a region is begun anew, after no place near the trouble led on.
_MAX_TEARS = 4
_MAX_REGION = 1 << 44


@dataclass(frozen=True, slots=True)
class ArenaWalk:
    """An arena as it was when its regions had been walked, and those, the oldest first."""

    arena: Arena
    regions: tuple[RegionWalk, ...]


def walk_arenas(memory: TargetMemory, arenas: Arenas, vmas: Sequence[Vma], budget: Budget) -> list[ArenaWalk]:
    """Walk all arenas, main_arena first in the result; raises WalkRefused where one of them never adds up."""
    others = [_walk_arena(memory, arena, is_main=False, budget=budget) for arena in arenas.others]
    if arenas.main.is_contiguous:
        return [_walk_arena(memory, arenas.main, is_main=True, budget=budget), *others]
    heaps = {walk.region.start for other in others for walk in other.regions}
    return [ArenaWalk(*walk_scattered(memory, arenas.main, vmas, heaps, budget)), *others]


def _walk_arena(memory: TargetMemory, arena: Arena, *, is_main: bool, budget: Budget) -> ArenaWalk:
    """Walk until every region ends as it should and their sizes add up."""
    known: dict[int, RegionWalk] = {}
    tears = 0
    base = _steady_base(memory, arena) if is_main else 0
    for _ in range(_ROUNDS):
        before = read_arena(memory, arena.address, arena.layout)
        regions = _regions(memory, before, base, is_main=is_main)
        try:
            _walk_regions(memory, before, regions, known, is_main=is_main, budget=budget)
        except WalkTorn:
            tears += 1
            if tears > _MAX_TEARS:
                break
            known.clear()
            continue
        after = read_arena(memory, arena.address, arena.layout)
        if _regions(memory, after, base, is_main=is_main) == regions and _size(regions) == after.system:
            return ArenaWalk(after, tuple(known[region.start] for region in regions))
        budget.step(0, 0)
    raise WalkRefused("changing", "the heap changed while it was walked, or is damaged")


def _regions(memory: TargetMemory, arena: Arena, base: int, *, is_main: bool) -> list[Region]:
    """The arena's regions as they are now; none where it has no memory, or is being changed."""
    if not arena.top:
        return []
    if not is_main:
        return heaps_of(memory, arena)
    region = main_region(memory, arena)
    return [region] if region and region.start == base and region.size < _MAX_REGION else []


def _steady_base(memory: TargetMemory, arena: Arena) -> int:
    """Where the main arena begins: the address that two readings agree on; 0 where it has no memory."""
    seen: set[int] = set()
    for _ in range(_ROUNDS):
        now = read_arena(memory, arena.address, arena.layout)
        region = main_region(memory, now) if now.top else None
        start = region.start if region else 0
        if start in seen:
            return start
        seen.add(start)
    return 0


def _walk_regions(
    memory: TargetMemory,
    arena: Arena,
    regions: Sequence[Region],
    known: dict[int, RegionWalk],
    *,
    is_main: bool,
    budget: Budget,
) -> None:
    """Walk the regions that were not walked yet, or differ from what they were then."""
    for region in regions:
        holds_top = region.start <= arena.top < region.end
        walk = known.get(region.start)
        if walk is not None and walk.region == region and walk.has_top == holds_top:
            continue
        if walk is None:
            walk = RegionWalk(memory, region, is_main=is_main, budget=budget)
        known[region.start] = walk
        walk.run(region, holds_top=holds_top)


def _size(regions: Sequence[Region]) -> int:
    return sum(region.size for region in regions)
