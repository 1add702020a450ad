"""glibc malloc's settings and its count of mapped chunks, read from outside: struct malloc_par, called mp_.

It is found in libc's data by the address where the program break began for malloc, which it holds behind the other
fields. Source: malloc/malloc.c (struct malloc_par), glibc 2.26 to 2.43 on 64-bit machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

from tracer.heap.heap_walk import MallocParameters
from tracer.procfs.pagescan import PAGE


@dataclass(frozen=True, slots=True)
class _Layout:
    """The fields from the beginning to tcache_count: thresholds, arenas, huge pages, counts, sizes, sbrk_base, tcache.

    ``sbrk_base`` is the offset of that field; ``huge`` that of thp_pagesize, 0 where there is none.
    """

    fields: Struct
    sbrk_base: int
    huge: int


# trim_threshold, top_pad, mmap_threshold, arena_test, arena_max; n_mmaps, n_mmaps_max, max_n_mmaps, no_dyn_threshold;
# mmapped_mem, max_mmapped_mem, sbrk_base; tcache_bins, tcache_max_bytes, tcache_count.
_UP_TO_2_34 = _Layout(Struct("=5Q 4i 3Q 3Q"), 72, 0)
# And from 2.35 on thp_pagesize, hp_pagesize, hp_flags before n_mmaps; 2.43 has thp_mode before these.
_FROM_2_35 = _Layout(Struct("=5Q 16x4x 4i 4x 3Q 3Q"), 96, 40)
_FROM_2_43 = _Layout(Struct("=5Q 8x16x4x 4i 4x 3Q 3Q"), 104, 48)

_MAX_MMAPS = 1 << 31


def find_parameters(
    data: Sequence[tuple[int, memoryview]], sbrk_base: int | None, *, has_fastbins: bool
) -> MallocParameters | None:
    """The parameters in libc's data (address, 64-bit words), None where they cannot be told.

    ``sbrk_base`` is where the main arena begins; None where that is not known, because the arena is in pieces.
    """
    layouts = (_UP_TO_2_34, _FROM_2_35) if has_fastbins else (_FROM_2_43,)
    for _, words in data:
        for index in _places(words, sbrk_base):
            for layout in layouts:
                found = _parse(words, index, layout, is_sure=sbrk_base is not None)
                if found:
                    return found
    return None


def _places(words: memoryview, sbrk_base: int | None) -> Iterator[int]:
    for index, word in enumerate(words):
        if word == sbrk_base or (sbrk_base is None and word and word % PAGE == 0):
            yield index


def _parse(words: memoryview, index: int, layout: _Layout, *, is_sure: bool) -> MallocParameters | None:
    first = index - layout.sbrk_base // 8
    last = first + (layout.fields.size + 7) // 8
    if first < 0 or last > len(words):
        return None
    raw = words[first:last].tobytes()
    trim, top_pad, mmap_threshold, arena_test, arena_max, *rest = layout.fields.unpack_from(raw)
    count, limit, most, is_fixed, mapped, most_mapped, _, bins, _, cache_count = rest
    sizes_fit = mapped <= most_mapped and mapped % 16 == 0 and (count == 0) == (mapped == 0)
    counts_fit = 0 <= count <= most <= limit < _MAX_MMAPS and is_fixed in (0, 1) and 0 < arena_test < 1 << 20
    if not sizes_fit or not counts_fit or (not is_sure and (limit != 65536 or bins != 64)):
        return None
    return MallocParameters(
        trim_threshold=trim,
        top_pad=top_pad,
        mmap_threshold=mmap_threshold,
        arena_max=arena_max,
        is_dynamic=not is_fixed,
        mmapped_count=count,
        mmapped_size=mapped,
        thp_page_size=int.from_bytes(raw[layout.huge : layout.huge + 8], "little") if layout.huge else 0,
        cache_count=cache_count,
    )
