"""Walking glibc malloc's heap in a live process from outside: what is in use, free, resident, and could be returned.

Nothing is stopped or written, and no symbols are needed. Only resident pages are read. Works for the x86-64 glibc
from 2.31 to 2.43, shared or static. ``walk`` is all that others need; what it returns is in ``heap_walk``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from tracer.errors import MemtraceError
from tracer.heap.glibc_arenas import Arena, Arenas, find_arenas, read_arena
from tracer.heap.glibc_cached import Cached, Lookup, find_cached
from tracer.heap.glibc_chunks import Budget
from tracer.heap.glibc_mmapped import find_mmapped, resident_of
from tracer.heap.glibc_parameters import find_parameters
from tracer.heap.glibc_regions import ArenaWalk, walk_arenas
from tracer.heap.glibc_trim import returnable
from tracer.heap.heap_index import HeapIndex, MappedChunk, RegionIndex, UseIndex
from tracer.heap.heap_walk import (
    ArenaUse,
    HeapUse,
    HeapWalk,
    MallocParameters,
    MmappedUse,
    Refused,
    WalkRefused,
)
from tracer.heap.spans import Run, Spans
from tracer.heap.target_memory import LiveMemory, TargetMemory
from tracer.model.vma import Vma
from tracer.procfs.files import read_file
from tracer.procfs.maps import read_maps
from tracer.procfs.pagescan import PAGE
from tracer.units import human_bytes

MAX_SECONDS = 5.0
MAX_CHUNKS = 10_000_000


@dataclass(frozen=True, slots=True)
class _Findings:
    """All that was read, before it is put together."""

    arenas: Sequence[ArenaWalk]
    regions: Sequence[Sequence[RegionIndex]]
    cached: Cached
    parameters: MallocParameters | None
    mapped: Sequence[MappedChunk]


def walk(
    pid: int, vmas: Sequence[Vma] | None = None, *, seconds: float = MAX_SECONDS, chunks: int = MAX_CHUNKS
) -> HeapWalk | Refused:
    """Walk all arenas of a process; ``vmas`` are its mappings, where the caller has just read them.

    Takes about 0.2 us and 4 bytes for each chunk (24 bytes more for a free one), and gives up when it would take more
    than ``seconds`` or find more than ``chunks``. Never raises for what the process is or does: whatever prevents a
    true answer (another allocator, a heap that changes faster than it can be read, swapped pages, a process that has
    ended or may not be read) is a Refused with the reason.
    """
    try:
        with LiveMemory(pid) as memory:
            mappings = read_maps(pid) if vmas is None else vmas
            return walk_memory(memory, mappings, seconds=seconds, chunks=chunks, locked=_locked_bytes(pid))
    except MemtraceError as error:
        return Refused("unreadable", error.cause)


def walk_memory(
    memory: TargetMemory,
    vmas: Sequence[Vma],
    *,
    seconds: float = MAX_SECONDS,
    chunks: int = MAX_CHUNKS,
    locked: int = 0,
) -> HeapWalk | Refused:
    """The same over any memory; ``locked`` bytes of it are locked by mlock."""
    budget = Budget(seconds, chunks)
    try:
        arenas = find_arenas(memory, vmas)
        budget.total = sum(arena.system for arena in arenas)
        walks = walk_arenas(memory, arenas, vmas, budget)
        findings = _look_around(memory, vmas, arenas, walks, budget)
    except WalkRefused as error:
        return error.refused
    return _put_together(memory, vmas, arenas, findings, budget, locked)


def _look_around(
    memory: TargetMemory, vmas: Sequence[Vma], arenas: Arenas, walks: Sequence[ArenaWalk], budget: Budget
) -> _Findings:
    """Find what the chunks' sizes do not tell: cached chunks, mapped ones, malloc's settings."""
    main = walks[0]
    sbrk_base = main.regions[0].region.start if main.regions and main.arena.is_contiguous else None
    parameters = find_parameters(arenas.data, sbrk_base, has_fastbins=arenas.main.layout.has_fastbins)
    regions = [[RegionIndex(region) for region in each.regions] for each in walks]
    lookup = Lookup([region for each in regions for region in each])
    limit = parameters.cache_count if parameters else 0
    cached = find_cached(memory, [each.arena for each in walks], lookup, limit, budget.is_late)
    count = parameters.mmapped_count if parameters else 0
    taken = sorted((region.region.start, region.region.end) for each in regions for region in each)
    mapped = find_mmapped(memory, vmas, count, taken, budget.is_late)
    return _Findings(walks, regions, cached, parameters, mapped)


def _put_together(
    memory: TargetMemory, vmas: Sequence[Vma], arenas: Arenas, found: _Findings, budget: Budget, locked: int
) -> HeapWalk:
    notes = list(found.cached.notes)
    uses = [[_use_of(memory, region, found.cached, notes) for region in regions] for regions in found.regions]
    resident = sum(use.resident.total for each in uses for use in each)
    is_locked = bool(locked) and locked >= resident
    if is_locked:
        notes.append("the process has locked its memory (mlock): malloc_trim can only shorten the main arena's top")
    top_page = (found.parameters.thp_page_size if found.parameters else 0) or PAGE
    results = [
        ArenaUse(
            each.arena.address,
            each.arena is found.arenas[0].arena,
            len(own),
            sum((_sums(use, vmas, top_page, is_locked) for use in own), HeapUse()),
        )
        for each, own in zip(found.arenas, uses, strict=True)
    ]
    mapped_runs = resident_of(memory, found.mapped)
    mmapped = _mmapped_use(found, mapped_runs, notes)
    index = HeapIndex([use for each in uses for use in each], found.mapped, Spans(mapped_runs))
    changed = _has_changed(memory, arenas, found)
    return HeapWalk(tuple(results), mmapped, found.parameters, changed, budget.elapsed, tuple(notes), index)


def _use_of(memory: TargetMemory, index: RegionIndex, cached: Cached, notes: list[str]) -> UseIndex:
    region = index.region
    pages = memory.pages(region.start & -PAGE, (region.end + PAGE - 1) & -PAGE)
    resident = [(max(low, region.start), min(high, region.end)) for low, high in pages.resident]
    swapped = sum(high - low for low, high in pages.swapped)
    if swapped:
        notes.append(f"{human_bytes(swapped)} of the heap are swapped out: not counted as resident")
    waiting = (chunks.between(region.start, region.end) for chunks in (cached.fast, cached.cached, cached.tables))
    return UseIndex(index, resident, *waiting)


def _sums(use: UseIndex, vmas: Sequence[Vma], top_page: int, is_locked: bool) -> HeapUse:
    """One region's share of its arena."""
    region, index = use.index.region, use.index
    start, end = region.start, region.end
    can_cut = index.is_main and any(vma.path == b"[heap]" and vma.start < end <= vma.end for vma in vmas)
    beyond = any(vma.path == b"[heap]" and vma.start <= end < (vma.end & -PAGE) for vma in vmas)
    gives = returnable(use, can_cut_top=can_cut and not beyond, is_locked=is_locked, top_page=top_page)
    return HeapUse(
        system=region.size,
        free=index.free.total,
        fast=use.fast.spans.total,
        cached=use.cached.spans.total,
        top=use.top.spans.total,
        overhead=use.overhead.spans.total + use.headers(start, end),
        foreign=index.foreign,
        chunks=index.chunk_count,
        free_chunks=len(index.free),
        resident=use.resident.total,
        free_resident=use.free.resident(start, end),
        fast_resident=use.fast.resident(start, end),
        cached_resident=use.cached.resident(start, end),
        top_resident=use.top.resident(start, end),
        returnable=gives,
    )


def _mmapped_use(found: _Findings, resident: Sequence[Run], notes: list[str]) -> MmappedUse:
    if found.parameters is None:
        notes.append("malloc's own figures were not found: blocks that it mapped one by one are not counted")
        return MmappedUse()
    use = MmappedUse(
        found.parameters.mmapped_count,
        found.parameters.mmapped_size,
        len(found.mapped),
        sum(high - low for low, high in resident),
    )
    if not use.is_complete:
        notes.append(f"{use.found} of the {use.count} blocks that malloc mapped one by one were found")
    return use


def _has_changed(memory: TargetMemory, arenas: Arenas, found: _Findings) -> bool:
    """Whether any arena differs from what it was before the walk, or during it."""
    before: dict[int, Arena] = {arena.address: arena for arena in arenas}
    for each in found.arenas:
        first, now = before[each.arena.address], read_arena(memory, each.arena.address, each.arena.layout)
        if not first.raw == each.arena.raw == now.raw:
            return True
    return False


def _locked_bytes(pid: int) -> int:
    with suppress(MemtraceError):
        line = re.search(rb"^VmLck:\s+(\d+) kB", read_file(pid, "status"), re.MULTILINE)
        return int(line[1]) << 10 if line else 0
    return 0
