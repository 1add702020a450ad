"""Arenas, mmapped chunks and CPython's arenas by what their owners write at their start."""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model.class_names import ClassRange
from tracer.model.heap_signs import HEAD_SIZE, HeapWalk, chunk_bytes, python_pool_arena

PAGE = 4096
MIB = 1 << 20
BASE = 0x7F0000000000


class Memory:
    """Pages of which only the first bytes are known; counts how many were read."""

    def __init__(self, heads: dict[int, bytes]) -> None:
        self.heads = heads
        self.reads = 0

    def __call__(self, addresses: Sequence[int], size: int) -> list[bytes | None]:
        self.reads += len(addresses)
        return [head.ljust(size, b"\0")[:size] if (head := self.heads.get(a)) is not None else None for a in addresses]

    def walk(self, size: int, *, python: bool = False) -> list[tuple[int, int, str]]:
        walk = HeapWalk(self, python=python)
        found = walk.walk(BASE, BASE + size, self([BASE], HEAD_SIZE)[0])
        return [((r.start - BASE) // PAGE, (r.end - BASE) // PAGE, r.detail or r.name) for r in found]


def chunk(size: int, before: int = 0, flags: int = 2) -> bytes:
    return pack("<2Q", before, size | flags)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (chunk(MIB), MIB),
        (chunk(MIB - PAGE), MIB - PAGE),  # another chunk behind it in the same VMA
        (chunk(MIB - 16), MIB),  # glibc 2.43
        (chunk(MIB + PAGE), 0),
        (chunk(MIB, flags=3), 0),
        (chunk(MIB, flags=6), 0),
        (chunk(MIB - 32), 0),
        (chunk(0), 0),
        (chunk(MIB, before=64), 0),
        (chunk(MIB)[:15], 0),
        (None, 0),
    ],
)
def test_a_mmapped_chunk_by_its_header(head: bytes | None, expected: int) -> None:
    assert chunk_bytes(head, MIB) == expected


def test_chunks_that_touch() -> None:
    memory = Memory({BASE: chunk(MIB), BASE + MIB: chunk(2 * MIB - 16), BASE + 3 * MIB: chunk(MIB)})
    assert memory.walk(4 * MIB) == [
        (0, 256, "malloc mmapped"),
        (256, 768, "malloc mmapped"),
        (768, 1024, "malloc mmapped"),
    ]
    assert memory.reads == 3


def test_a_chunk_amid_other_memory() -> None:
    memory = Memory({BASE + page * PAGE: bytes(16) for page in range(400)} | {BASE + 300 * PAGE: chunk(80 * PAGE)})
    assert memory.walk(400 * PAGE) == [(300, 380, "malloc mmapped")]
    small = Memory({BASE + 3 * PAGE: chunk(2 * PAGE)})
    assert small.walk(9 * PAGE) == [], "malloc would not map it"


def test_the_search_has_an_end() -> None:
    memory = Memory({})
    assert memory.walk(1 << 40) == []
    assert memory.reads < 2000
    walk = HeapWalk(memory)
    for _ in range(100):
        list(walk.walk(BASE, BASE + (1 << 40), None))
    assert memory.reads < 30000, "in all memory together"


def pool(address: int, *, arena: int = 3, size_class: int = 1, count: int = 5, free: int = 0) -> bytes:
    size = (size_class + 1) * 16
    return pack("<4Q4I", count, free, address, address, arena, size_class, 48 + size, 16384 - size)


@pytest.mark.parametrize("size_class", [0, 5, 31])
def test_a_pool_of_small_objects(size_class: int) -> None:
    assert python_pool_arena(pool(BASE, size_class=size_class), BASE) == 3
    assert python_pool_arena(pool(BASE, size_class=size_class, free=BASE + 48), BASE) == 3


@pytest.mark.parametrize(
    "head",
    [
        pool(BASE, size_class=32),
        pool(BASE, count=600),
        pool(BASE, free=BASE + 16384),
        pool(BASE, free=8),
        pool(BASE)[:-4] + pack("<I", 16384),
        pool(BASE)[:-8] + pack("<I", 49) + pool(BASE)[-4:],
        pool(BASE)[:40],
        bytes(48),
        None,
    ],
)
def test_what_is_no_pool(head: bytes | None) -> None:
    assert python_pool_arena(head, BASE) is None
    assert python_pool_arena(pool(BASE), BASE + PAGE) is None, "not where one can begin"


def test_arenas_of_python_and_chunks() -> None:
    start = BASE + 2 * PAGE  # an arena begins at any page, its pools at multiples of 16 KiB
    first, second = BASE + 4 * PAGE, BASE + 4 * PAGE + MIB
    heads = {first: pool(first), second: pool(second), start + 2 * MIB: chunk(MIB)}
    memory = Memory(heads)
    found = HeapWalk(memory, python=True).walk(start, start + 3 * MIB + 5 * PAGE, None)
    assert list(found) == [
        ClassRange(start, start + MIB, "anonymous", "python heap"),
        ClassRange(start + MIB, start + 2 * MIB, "anonymous", "python heap"),
        ClassRange(start + 2 * MIB, start + 3 * MIB, "malloc mmapped"),
    ]
    assert [r.name for r in HeapWalk(memory).walk(start, start + 3 * MIB, None)] == ["malloc mmapped"]


def test_a_pool_amid_other_memory_is_a_pool_and_no_arena() -> None:
    place = BASE + 64 * PAGE
    assert Memory({place: pool(place)}).walk(MIB, python=True) == [(64, 68, "python heap")]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 600),
    st.dictionaries(st.integers(0, 600), st.tuples(st.integers(1, 300), st.sampled_from([0, 16])), max_size=12),
    st.booleans(),
)
def test_what_is_found_is_disjoint_and_inside(pages: int, chunks: dict[int, tuple[int, int]], python: bool) -> None:
    heads = {BASE + page * PAGE: chunk(size * PAGE - less) for page, (size, less) in chunks.items()}
    position = 0
    for start, end, _ in Memory(heads).walk(pages * PAGE, python=python):
        assert position <= start < end <= pages
        assert start in chunks and end - start == chunks[start][0]
        position = end
