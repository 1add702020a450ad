"""What each VMA is for, by name, by flags, by neighbours and by what glibc left in it."""

from __future__ import annotations

from struct import pack

import pytest

from tracer.model.classes import CLASSES, ClassContext, classify, classify_all
from tracer.model.vma import Vma

MIB = 1 << 20
BASE = 0x7F0000000000


def anon(start: int = BASE + 4096, size: int = MIB, perms: str = "rw-p", path: bytes = b"", inode: int = 0) -> Vma:
    return Vma(start, start + size, perms, 0, "00:00", inode, path)


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
    ("path", "perms", "inode", "expected"),
    [
        (b"[heap]", "rw-p", 0, "heap"),
        (b"[stack]", "rw-p", 0, "stack"),
        (b"[stack:17]", "rw-p", 0, "thread stack"),
        (b"[vdso]", "r-xp", 0, "kernel"),
        (b"[vvar_vclock]", "r--p", 0, "kernel"),
        (b"[vsyscall]", "--xp", 0, "kernel"),
        (b"[uprobes]", "--xp", 0, "memtrace"),
        (b"[anon: glibc: malloc arena]", "rw-p", 0, "malloc arena"),
        (b"[anon: glibc: malloc]", "rw-p", 0, "malloc mmapped"),
        (b"[anon: glibc: loader malloc]", "rw-p", 0, "anonymous"),
        (b"[anon: glibc: pthread stack: 71]", "rw-p", 0, "thread stack"),
        (b"[anon:v8]", "rwxp", 0, "jit"),
        (b"[anon_shmem:x]", "rw-s", 9, "shared memory"),
        (b"/usr/lib/libc.so.6", "r-xp", 9, "file"),
        (b"/tmp/heap (deleted)", "rw-s", 9, "file"),
        (b"/dev/shm/pool", "rw-s", 9, "shared memory"),
        (b"/memfd:jit (deleted)", "rwxs", 9, "shared memory"),
        (b"/SYSV0000abcd (deleted)", "rw-s", 9, "shared memory"),
        (b"/dev/zero (deleted)", "rw-s", 9, "shared memory"),
        (b"/dev/zero", "rw-p", 9, "anonymous"),
        (b"/anon_hugepage (deleted)", "rw-p", 9, "anonymous"),
        (b"/anon_hugepage (deleted)", "rw-s", 9, "shared memory"),
        (b"anon_inode:[perf_event]", "rw-s", 9, "file"),
        (b"", "rw-s", 0, "shared memory"),
        (b"", "rw-p", 0, "anonymous"),
        (b"", "r--p", 0, "anonymous"),
        (b"", "---p", 0, "guard"),
        (b"", "rwxp", 0, "jit"),
        (b"", "r-xp", 0, "jit"),
    ],
)
def test_by_name_and_permissions(path: bytes, perms: str, inode: int, expected: str) -> None:
    assert classify(anon(perms=perms, path=path, inode=inode)) == expected
    assert expected in CLASSES


@pytest.mark.parametrize(
    ("flags", "perms", "expected"),
    [
        (("rd", "wr", "nh"), "rw-p", "thread stack"),
        (("rd", "wr", "ex", "nh"), "rwxp", "thread stack"),
        (("nh",), "---p", "guard"),
        (("rd", "wr", "gd"), "rw-p", "stack"),
        (("rd", "wr", "??"), "rw-p", "anonymous"),
    ],
)
def test_by_flags(flags: tuple[str, ...], perms: str, expected: str) -> None:
    assert classify(anon(perms=perms), flags) == expected


def arena_pair(used: int = MIB) -> tuple[Vma, Vma]:
    return anon(BASE, used), anon(BASE + used, 64 * MIB - used, "---p")


def test_an_arena_by_its_shape() -> None:
    assert list(classify_all([(vma, ()) for vma in arena_pair()]).values()) == ["malloc arena", "guard"]
    assert classify(anon(BASE, 64 * MIB)) == "malloc arena"
    misplaced = (anon(BASE + MIB, MIB), anon(BASE + 2 * MIB, 63 * MIB, "---p"))
    assert set(classify_all([(vma, ()) for vma in misplaced]).values()) == {"anonymous", "guard"}
    assert classify(anon(BASE, MIB)) == "anonymous"


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
    rows: list[tuple[Vma, tuple[str, ...]]] = [(vma, ()) for vma in arena_pair()]
    assert classify_all(rows, Memory({BASE: pack("=4Q", *heap_info)}))[BASE] == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (MIB | 2, "malloc mmapped"),
        (MIB - 4096 | 2, "malloc mmapped"),  # another chunk behind it in the same VMA
        (MIB - 16 | 2, "malloc mmapped"),  # glibc 2.43
        (MIB + 4096 | 2, "anonymous"),
        (MIB | 3, "anonymous"),
        (MIB | 6, "anonymous"),
        (MIB - 32 | 2, "anonymous"),
        (2, "anonymous"),
    ],
)
def test_a_mmapped_chunk_by_its_header(word: int, expected: str) -> None:
    vma = anon()
    assert classify(vma, context=ClassContext(read_memory=Memory({vma.start: pack("=2Q", 0, word)}))) == expected


def test_a_thread_stack_by_its_thread_block() -> None:
    stack = anon(BASE + MIB, MIB)
    guard = anon(BASE + MIB - 4096, 4096, "---p")
    block = stack.end - 2304
    page = bytearray(4096)
    page[-2304:-2280] = pack("=3Q", block, 1, block)
    memory = Memory({stack.end - 4096: bytes(page)})
    assert classify_all([(guard, ()), (stack, ())], memory)[stack.start] == "thread stack"
    assert classify(stack, context=ClassContext(read_memory=memory)) == "anonymous"
    page[-2288] ^= 1
    broken = Memory({stack.end - 4096: bytes(page)})
    assert classify_all([(guard, ()), (stack, ())], broken)[stack.start] == "anonymous"


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
        classify(vma, context=ClassContext(read_memory=refuse))


def test_unreadable_memory_is_anonymous() -> None:
    rows: list[tuple[Vma, tuple[str, ...]]] = [(anon(), ()), (anon(BASE + 2 * MIB), ())]
    assert set(classify_all(rows, Memory({})).values()) == {"anonymous"}
