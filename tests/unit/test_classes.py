"""What each VMA is for, by name, by flags, by neighbours and by what glibc left in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model.classes import (
    CLASSES,
    ClassRange,
    ProcessFacts,
    classify_all,
    classify_ranges,
    dominant_classes,
)
from tracer.model.elf_layout import ElfLayout, Load
from tracer.model.thread_stacks import Thread
from tracer.model.vma import Vma

PAGE = 4096
MIB = 1 << 20
BASE = 0x7F0000000000

Rows = list[tuple[Vma, tuple[str, ...]]]


def anon(start: int = BASE + 4096, size: int = MIB, perms: str = "rw-p", path: bytes = b"", inode: int = 0) -> Vma:
    return Vma(start, start + size, perms, 0, "00:00", inode, path)


def one(vma: Vma, flags: tuple[str, ...] = ()) -> ClassRange:
    (range_,) = classify_ranges([(vma, flags)])
    assert (range_.start, range_.end) == (vma.start, vma.end)
    return range_


def names(ranges: Sequence[ClassRange]) -> list[str]:
    return [range_.name for range_ in ranges]


class Memory:
    """Bytes at addresses; everything else cannot be read."""

    def __init__(self, content: dict[int, bytes]) -> None:
        self.content = content

    def __call__(self, address: int, size: int) -> bytes | None:
        for start, data in self.content.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start :][:size]
        return None


@pytest.mark.parametrize(
    ("path", "perms", "inode", "expected", "detail"),
    [
        (b"[heap]", "rw-p", 0, "heap", ""),
        (b"[stack]", "rw-p", 0, "stack", ""),
        (b"[stack:17]", "rw-p", 0, "thread stack", "tid 17"),
        (b"[vdso]", "r-xp", 0, "kernel", "vdso"),
        (b"[vvar_vclock]", "r--p", 0, "kernel", "vvar_vclock"),
        (b"[vsyscall]", "--xp", 0, "kernel", "vsyscall"),
        (b"[uprobes]", "--xp", 0, "memtrace", "uprobes"),
        (b"[anon: glibc: malloc arena]", "rw-p", 0, "malloc arena", ""),
        (b"[anon: glibc: malloc]", "rw-p", 0, "malloc mmapped", ""),
        (b"[anon: glibc: loader malloc]", "rw-p", 0, "anonymous", "glibc: loader malloc"),
        (b"[anon: glibc: pthread stack: 71]", "rw-p", 0, "thread stack", "tid 71"),
        (b"[anon: glibc: pthread user stack: 72]", "rw-p", 0, "thread stack", "tid 72"),
        (b"[anon: glibc: unused stack]", "rw-p", 0, "thread stack", "unused"),
        (b"[anon: glibc: .bss /usr/lib/libx.so]", "rw-p", 0, "bss", "libx.so"),
        (b"[anon:.bss]", "rw-p", 0, "bss", ""),
        (b"[anon:v8]", "rwxp", 0, "jit", "v8"),
        (b"[anon:v8]", "---p", 0, "reserve", "v8"),
        (b"[anon:\xff]", "rw-p", 0, "anonymous", "\\xff"),
        (b"[anon_shmem:x]", "rw-s", 9, "shared memory", "x"),
        (b"/usr/lib/libc.so.6", "r-xp", 9, "text", "libc.so.6"),
        (b"/usr/lib/libc.so.6", "r--p", 9, "file", "libc.so.6"),
        (b"/usr/lib/libc.so.6", "rw-p", 9, "file", "libc.so.6"),
        (b"/usr/lib/libc.so.6", "---p", 9, "file", "libc.so.6"),
        (b"/tmp/heap (deleted)", "rw-s", 9, "file", "heap (deleted)"),
        (b"/dev/shm/pool", "rw-s", 9, "shared memory", "/dev/shm/pool"),
        (b"/memfd:jit (deleted)", "rwxs", 9, "shared memory", "memfd:jit"),
        (b"/SYSV0000abcd (deleted)", "rw-s", 9, "shared memory", "SysV shmid 9"),
        (b"/dev/zero (deleted)", "rw-s", 9, "shared memory", "shared anonymous"),
        (b"/dev/zero", "rw-p", 9, "anonymous", ""),
        (b"/anon_hugepage (deleted)", "rw-p", 9, "anonymous", "huge pages"),
        (b"/anon_hugepage (deleted)", "rw-s", 9, "shared memory", "shared anonymous, huge pages"),
        (b"anon_inode:[perf_event]", "rw-s", 9, "file", "anon_inode:[perf_event]"),
        (b"", "rw-s", 0, "shared memory", "shared anonymous"),
        (b"", "rw-p", 0, "anonymous", ""),
        (b"", "r--p", 0, "anonymous", ""),
        (b"", "---p", 0, "reserve", ""),
        (b"", "rwxp", 0, "jit", ""),
        (b"", "r-xp", 0, "jit", ""),
    ],
)
def test_by_name_and_permissions(path: bytes, perms: str, inode: int, expected: str, detail: str) -> None:
    range_ = one(anon(perms=perms, path=path, inode=inode))
    assert (range_.name, range_.detail) == (expected, detail)
    assert expected in CLASSES


@pytest.mark.parametrize(
    ("flags", "perms", "expected"),
    [
        (("rd", "wr", "gu", "nh"), "rw-p", "thread stack"),
        (("rd", "wr", "ex", "gu", "nh"), "rwxp", "thread stack"),
        (("rd", "wr", "nh"), "rw-p", "anonymous"),  # no guard: MADV_NOHUGEPAGE, as allocators use it
        (("rd", "wr", "gu"), "rw-p", "anonymous"),
        (("nh",), "---p", "reserve"),
        (("rd", "wr", "gd"), "rw-p", "stack"),
        (("rd", "wr", "??"), "rw-p", "anonymous"),
    ],
)
def test_by_flags(flags: tuple[str, ...], perms: str, expected: str) -> None:
    assert one(anon(perms=perms), flags).name == expected


@pytest.mark.parametrize(("size", "expected"), [(PAGE, "guard"), (64 << 10, "guard"), ((64 << 10) + PAGE, "reserve")])
def test_a_guard_is_small(size: int, expected: str) -> None:
    assert one(anon(size=size, perms="---p")).name == expected


def test_a_large_guard_below_a_stack() -> None:
    guard, stack = anon(BASE, 512 << 10, "---p"), anon(BASE + (512 << 10), MIB)
    assert names(classify_ranges([(guard, ("nh",)), (stack, ("nh",))])) == ["guard", "thread stack"]
    assert names(classify_ranges([(guard, ()), (stack, ())])) == ["reserve", "anonymous"]


def test_the_main_stack_is_the_first_threads() -> None:
    facts = ProcessFacts(threads=[Thread(8, 8, "main one"), Thread(9, 9, "other")])
    (range_,) = classify_ranges([(anon(path=b"[stack]"), ())], facts)
    assert range_.detail == "tid 8 main one"


def arena_pair(used: int = MIB) -> tuple[Vma, Vma]:
    return anon(BASE, used), anon(BASE + used, 64 * MIB - used, "---p")


def test_an_arena_by_its_shape() -> None:
    assert list(classify_all([(vma, ()) for vma in arena_pair()]).values()) == ["malloc arena", "reserve"]
    assert list(classify_all([(vma, ()) for vma in arena_pair(64 * MIB - PAGE)]).values()) == [
        "malloc arena",
        "reserve",
    ], "however little of it is left"
    assert one(anon(BASE, 64 * MIB)).name == "malloc arena"
    misplaced = (anon(BASE + MIB, MIB), anon(BASE + 2 * MIB, 63 * MIB, "---p"))
    assert set(classify_all([(vma, ()) for vma in misplaced]).values()) == {"anonymous", "reserve"}
    assert one(anon(BASE, MIB)).name == "anonymous"


@pytest.mark.parametrize(
    ("heap_info", "expected"),
    [
        ((BASE + 0x30, 0, MIB, MIB), "malloc arena"),
        ((BASE - 64 * MIB + 0x30, BASE - 64 * MIB, 4096, MIB), "malloc arena"),  # the arena's second heap
        ((BASE + 0x30, 0, 2 * MIB, MIB), "anonymous"),
        ((BASE + 0x30, 0, MIB, 65 * MIB), "anonymous"),
        ((BASE + 0x30, BASE - 64 * MIB, MIB, MIB), "anonymous"),
        ((BASE - 64 * MIB + 0x30, 0, MIB, MIB), "anonymous"),
        ((0, 0, 0, 0), "anonymous"),
    ],
)
def test_an_arena_by_its_heap_info(heap_info: tuple[int, ...], expected: str) -> None:
    rows: Rows = [(vma, ()) for vma in arena_pair()]
    assert classify_all(rows, Memory({BASE: pack("=4Q", *heap_info)}))[BASE] == expected


def test_arenas_amid_other_memory() -> None:
    vma = anon(BASE - MIB, 66 * MIB)
    full = pack("=4Q", BASE + 0x30, 0, 64 * MIB, 64 * MIB)
    begun = pack("=4Q", BASE + 0x30, BASE, MIB, MIB // 2 * 2)
    read = Memory({BASE: full, BASE + 64 * MIB: begun})
    assert [(r.size // MIB, r.name) for r in classify_ranges([(vma, ())], ProcessFacts(read=read))] == [
        (1, "anonymous"),
        (65, "malloc arena"),
    ], "two heaps of one arena"


def test_a_thread_stack_by_its_thread_block() -> None:
    stack = anon(BASE + MIB, MIB)
    guard = anon(BASE + MIB - 4096, 4096, "---p")
    block = stack.end - 2304
    page = bytearray(4096)
    page[-2304:-2280] = pack("=3Q", block, 1, block)
    memory = Memory({stack.end - 4096: bytes(page)})
    assert classify_all([(guard, ()), (stack, ())], memory)[stack.start] == "thread stack"
    assert classify_all([(stack, ())], memory)[stack.start] == "anonymous"
    page[-2288] ^= 1
    broken = Memory({stack.end - 4096: bytes(page)})
    assert classify_all([(guard, ()), (stack, ())], broken)[stack.start] == "anonymous"


LIBRARY = ElfLayout(
    (
        Load(4, 0, 0, 0x1800, 0x1800),
        Load(5, 0x2000, 0x2000, 0x3000, 0x3000),
        Load(6, 0x5C00, 0x6C00, 0x1800, 0x5000),
    ),
    relro=((0x6C00, 0x7000),),
)


def test_a_library_whose_bss_goes_on_into_other_memory() -> None:
    def mapped(start: int, end: int, perms: str, offset: int, inode: int = 7) -> tuple[Vma, tuple[str, ...]]:
        path = b"/lib/libx.so" if inode else b""
        return Vma(BASE + start, BASE + end, perms, offset, "fe:00" if inode else "00:00", inode, path), ()

    rows = [
        mapped(0, 0x2000, "r--p", 0),
        mapped(0x2000, 0x5000, "r-xp", 0x2000),
        mapped(0x6000, 0x7000, "r--p", 0x5000),
        mapped(0x7000, 0x9000, "rw-p", 0x6000),
        mapped(0x9000, 0x20000, "rw-p", 0, 0),
    ]
    ranges = classify_ranges(rows, ProcessFacts(images={("fe:00", 7): LIBRARY}))
    assert [(hex(r.start - BASE), r.name, r.detail) for r in ranges] == [
        ("0x0", "rodata", "libx.so"),
        ("0x2000", "text", "libx.so"),
        ("0x6000", "relro", "libx.so"),
        ("0x7000", "data", "libx.so"),
        ("0x9000", "bss", "libx.so"),
        ("0xc000", "anonymous", ""),
    ]
    assert dominant_classes(rows, ranges)[BASE + 0x9000] == "anonymous", "most of it is"
    assert names(classify_ranges(rows)) == ["file", "text", "file", "file", "anonymous"], "where it cannot be read"


def test_a_brk_heap_right_behind_the_bss() -> None:
    program = ElfLayout(LIBRARY.loads, fixed=True)
    rows: Rows = [
        (Vma(0x2000, 0x5000, "r-xp", 0x2000, "fe:00", 7, b"/bin/x"), ()),
        (Vma(0x9000, 0x40000, "rw-p", 0, "00:00", 0, b"[heap]"), ()),
    ]
    ranges = classify_ranges(rows, ProcessFacts(images={("fe:00", 7): program}))
    assert [(r.start, r.name) for r in ranges] == [(0x2000, "text"), (0x9000, "bss"), (0xC000, "heap")]


def test_memory_is_read_only_where_it_can_decide() -> None:
    def refuse(address: int, size: int) -> bytes | None:
        raise AssertionError(f"read {size} bytes at {address:#x}")

    named = [
        anon(path=b"[heap]"),
        anon(perms="---p"),
        anon(perms="rwxp"),
        anon(path=b"/x", inode=1),
        anon(perms="r--p"),
    ]
    for vma in named:
        classify_all([(vma, ())], refuse)


def test_unreadable_memory_is_anonymous() -> None:
    rows: Rows = [(anon(), ()), (anon(BASE + 2 * MIB), ())]
    assert set(classify_all(rows, Memory({})).values()) == {"anonymous"}


def test_the_dominant_class_is_that_of_most_bytes() -> None:
    first, second = anon(BASE, 4 * PAGE), anon(BASE + 4 * PAGE, PAGE)
    ranges = [
        ClassRange(BASE, BASE + PAGE, "bss"),
        ClassRange(BASE + PAGE, BASE + 2 * PAGE, "jit"),
        ClassRange(BASE + 2 * PAGE, BASE + 3 * PAGE, "jit", "x"),
        ClassRange(BASE + 3 * PAGE, BASE + 4 * PAGE, "bss"),
        ClassRange(BASE + 4 * PAGE, BASE + 5 * PAGE, "heap"),
    ]
    assert dominant_classes([(first, ()), (second, ())], ranges) == {first.start: "bss", second.start: "heap"}
    assert dominant_classes([(first, ())], []) == {first.start: "anonymous"}


PATHS = [b"", b"", b"", b"[heap]", b"[stack]", b"[vdso]", b"/lib/libx.so", b"/memfd:x", b"[anon:y]", b"/dev/zero"]
FLAGS = [(), ("nh",), ("nh", "gu"), ("gd",)]


@st.composite
def processes(draw: st.DrawFn) -> tuple[Rows, ProcessFacts]:
    """Any VMAs, torn snapshots too, of which a page in two can be read and holds anything that a rule looks for."""
    rows: Rows = []
    position = BASE + draw(st.sampled_from([0, -3 * PAGE, 2 * PAGE]))
    for _ in range(draw(st.integers(0, 8))):
        position += draw(st.sampled_from([0, 0, 0, PAGE, -PAGE]))
        size = draw(st.sampled_from([1, 2, 3, 5, 9, 300])) * PAGE
        path = draw(st.sampled_from(PATHS))
        perms = draw(st.sampled_from(["rw-p", "rw-p", "---p", "r-xp", "rwxp", "r--p", "rw-s"]))
        offset = draw(st.sampled_from([0, 0x2000, 0x5000, 0x6000]))
        vma = Vma(position, position + size, perms, offset, "fe:00", 7 if path.startswith(b"/lib") else 0, path)
        rows.append((vma, draw(st.sampled_from(FLAGS))))
        position += size

    def read(address: int, size: int) -> bytes | None:
        kind = address // PAGE % 4
        content = [pack("<2Q", 0, 3 * PAGE | 2), pack("<4Q", address + 0x30, 0, PAGE, PAGE), bytes(16)]
        return content[kind].ljust(size, b"\0")[:size] if kind < 3 else None

    threads = [Thread(i, i, "t", draw(st.none() | st.integers(BASE, BASE + 900 * PAGE))) for i in range(1, 4)]
    marks = sorted(draw(st.sets(st.integers(0, 400), max_size=4)))

    def guards(start: int, end: int) -> list[tuple[int, int]]:
        found = [(BASE + mark * PAGE, BASE + (mark + 1) * PAGE) for mark in marks]
        return [(low, high) for low, high in found if start <= low and high <= end]

    facts = ProcessFacts(
        images={("fe:00", 7): LIBRARY} if draw(st.booleans()) else {},
        threads=threads,
        is_go=draw(st.booleans()),
        read=draw(st.sampled_from([None, read])),
        guards=draw(st.sampled_from([None, guards])),
    )
    return rows, facts


@settings(max_examples=400, deadline=None)
@given(processes())
def test_every_vma_is_covered_completely_and_in_order(process: tuple[Rows, ProcessFacts]) -> None:
    rows, facts = process
    following = iter(classify_ranges(rows, facts))
    for vma, _ in rows:
        tiles: list[ClassRange] = []
        position = vma.start
        while position < vma.end:
            tile = next(following)
            assert tile.start == position < tile.end <= vma.end
            assert tile.name in CLASSES
            tiles.append(tile)
            position = tile.end
        for before, after in pairwise(tiles):
            assert (before.name, before.detail) != (after.name, after.detail)
    assert next(following, None) is None
    assert set(dominant_classes(rows, classify_ranges(rows, facts))) == {vma.start for vma, _ in rows}
