"""The finding and the remedies for memory that an allocator keeps: which are named, and with which bytes."""

from __future__ import annotations

import pytest

from tracer.heap.advice import ESTIMATE_LABEL, advise, advise_other, why_not_walked
from tracer.heap.heap_walk import ArenaUse, HeapUse, HeapWalk, MallocParameters, MmappedUse

MIB = 1 << 20
DEFAULTS = MallocParameters(128 << 10, 128 << 10, 128 << 10, 0, True, 0, 0)
ADAPTED = MallocParameters(64 * MIB, 128 << 10, 32 * MIB, 0, True, 0, 0)
SET_HIGH = MallocParameters(64 * MIB, 128 << 10, 128 << 10, 0, False, 0, 0)


def walk_of(*uses: HeapUse, parameters: MallocParameters | None = DEFAULTS) -> HeapWalk:
    arenas = tuple(ArenaUse(index, index == 0, 1, use) for index, use in enumerate(uses))
    return HeapWalk(arenas, MmappedUse(), parameters, False, 0.0)


def use_of(resident: int = 100 * MIB, **sizes: int) -> HeapUse:
    return HeapUse(system=resident, resident=resident, **sizes)


def test_a_heap_in_use_needs_nothing() -> None:
    advice = advise(walk_of(use_of(free_resident=9 * MIB)))
    assert (advice.kind, advice.remedies) == ("little", ())
    assert advice.finding == "malloc keeps 9.0 MiB (9.0 %) of its resident heap free: little"


def test_whole_pages_between_blocks_call_for_malloc_trim() -> None:
    advice = advise(walk_of(use_of(free_resident=50 * MIB, returnable=45 * MIB)))
    assert advice.kind == "returnable"
    assert advice.finding == (
        "malloc keeps 50.0 MiB (50.0 %) of its resident heap free; malloc_trim(0) would return 45.0 MiB"
    )
    assert advice.remedies == (
        "45.0 MiB are whole free pages between blocks in use: call malloc_trim(0) once the load is over",
    )


def test_holes_within_pages_are_called_fragmentation() -> None:
    advice = advise(walk_of(use_of(free_resident=90 * MIB)))
    assert advice.kind == "fragmented"
    assert len(advice.remedies) == 1
    assert "90.0 MiB are holes smaller than a page" in advice.remedies[0]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (DEFAULTS, "malloc_trim(0) returns them"),
        (None, "malloc_trim(0) returns them"),
        (
            ADAPTED,
            "below the trim threshold of 64.0 MiB, which large blocks raised as they were freed: M_MMAP_THRESHOLD",
        ),
        (SET_HIGH, "below the trim threshold of 64.0 MiB, which the program has set: lower M_TRIM_THRESHOLD"),
    ],
)
def test_a_free_top_names_the_threshold_that_keeps_it(parameters: MallocParameters | None, words: str) -> None:
    advice = advise(walk_of(use_of(top_resident=60 * MIB, returnable=60 * MIB), parameters=parameters))
    assert advice.kind == "top"
    assert len(advice.remedies) == 1
    assert words in advice.remedies[0]


def test_many_arenas_call_for_fewer() -> None:
    free = use_of(20 * MIB, free_resident=10 * MIB)
    advice = advise(walk_of(use_of(20 * MIB), *[free] * 8))
    assert advice.kind == "arenas"
    assert advice.remedies[0] == (
        "80.0 MiB are free in 8 arenas of threads: MALLOC_ARENA_MAX=2 lets threads share arenas"
    )
    assert "holes" in advice.remedies[1]


def test_large_caches_of_threads_are_named() -> None:
    advice = advise(walk_of(use_of(cached_resident=30 * MIB)))
    assert "30.0 MiB wait in threads' caches" in advice.remedies[0]


@pytest.mark.parametrize(
    ("allocator", "word"),
    [
        ("jemalloc", "dirty_decay_ms"),
        ("tcmalloc", "TCMALLOC_RELEASE_RATE"),
        ("mimalloc", "MIMALLOC_PURGE_DELAY"),
        ("musl malloc", "allocate blocks that live long apart"),
    ],
)
def test_other_allocators_have_their_own_remedy(allocator: str, word: str) -> None:
    advice = advise_other(allocator, 50 * MIB, 100 * MIB)
    assert advice.kind == "allocator"
    assert ESTIMATE_LABEL in advice.finding
    assert advice.finding.startswith(f"{allocator} keeps about 50.0 MiB (50.0 %)")
    assert word in advice.remedies[0]
    assert advise_other(allocator, 1000, 100 * MIB).kind == "little"


def test_an_unknown_allocator_gets_no_invented_remedy() -> None:
    assert advise_other("malloc in libfoo.so", 50 * MIB, 100 * MIB).remedies == ()


def test_why_a_heap_is_not_walked() -> None:
    assert why_not_walked("glibc malloc") is None
    assert why_not_walked("jemalloc") == (
        "the heap of jemalloc cannot be read from outside; what it keeps is an estimate: "
        "RSS of its ranges minus live bytes"
    )
