"""Thread stacks: by their blocks, by guards, by the kernel's flags and by stack pointers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack_into

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.model.class_names import ClassRange
from tracer.model.thread_stacks import StackFinder, Thread, ThreadBlock, parse_thread_block, split_at_guards
from tracer.model.vma import Vma

PAGE = 4096
BASE = 0x7F0000000000
FIELDS = 1680  # of struct pthread in glibc 2.36: stackblock, stackblock_size, guardsize


def block(end: int, tid: int = 0, stack: tuple[int, int] | None = None, guard: int = 0, at: int = 2304) -> bytes:
    """The last page of a stack that ends at ``end``."""
    page = bytearray(b"\xaa" * PAGE)
    place = PAGE - at
    page[place:] = bytes(at)
    own = end - at
    pack_into("<3Q", page, place, own, 0x1234, own)
    pack_into("<i", page, place + 720, tid)
    if stack is not None:
        pack_into("<3Q", page, place + FIELDS, stack[0], stack[1] - stack[0], guard)
    return bytes(page)


def reader(pages: dict[int, bytes]) -> Callable[[int, int], bytes | None]:
    def read(address: int, size: int) -> bytes | None:
        page = pages.get(address & -PAGE)
        return page[address % PAGE :][:size] if page is not None else None

    return read


def vma(start: int, end: int, perms: str = "rw-p") -> Vma:
    return Vma(BASE + start * PAGE, BASE + end * PAGE, perms, 0, "00:00", 0, b"")


def at(page: int) -> int:
    return BASE + page * PAGE


def told(ranges: Sequence[ClassRange]) -> list[tuple[int, int, str, str]]:
    rows = [((r.start - BASE) // PAGE, (r.end - BASE) // PAGE, r.name, r.detail) for r in ranges]
    return sorted(rows)


@pytest.mark.parametrize("place", [2304, 2368, 2304 + 16, 4080 // 16 * 16])
def test_a_block_is_known_by_its_own_address(place: int) -> None:
    page = block(at(10), 77, (at(2), at(10)), PAGE, place)
    found = parse_thread_block(page, at(9))
    assert found == ThreadBlock(at(10) - place, 77, (at(2), at(10)), PAGE)


def test_what_is_no_block() -> None:
    page = block(at(10))
    assert parse_thread_block(page, at(8)) is None, "at another address"
    assert parse_thread_block(page[:100], at(9)) is None
    assert parse_thread_block(b"", at(9)) is None
    broken = bytearray(page)
    broken[PAGE - 2304 + 16] ^= 1
    assert parse_thread_block(bytes(broken), at(9)) is None


@pytest.mark.parametrize(
    "stack",
    [(at(9), at(9)), (at(3), at(9)), (at(10), at(20)), (at(2), at(14)), (0, at(10))],
    ids=["too small", "ends below the block", "above the block", "ends far above", "at address 0"],
)
def test_a_stack_that_cannot_be_the_blocks_own(stack: tuple[int, int]) -> None:
    assert parse_thread_block(block(at(10), 7, stack), at(9)) == ThreadBlock(at(10) - 2304, 7)


@pytest.mark.parametrize("tid", [1, 77, 3571, 7456, 4 << 20])
def test_a_small_tid_and_the_list_of_robust_locks_are_no_stack(tid: int) -> None:
    """The tid and, behind it, the address of the list: as a start and a size, they end a little above the block."""
    page = bytearray(block(at(10), tid, (at(2), at(10)), PAGE))
    pack_into("<Q", page, PAGE - 2304 + 728, at(10) - 2304 + 736)
    pack_into("<Q", page, PAGE - 2304 + 736, at(10) - 2304 + 736)
    assert parse_thread_block(bytes(page), at(9)) == ThreadBlock(at(10) - 2304, tid, (at(2), at(10)), PAGE)


@given(st.binary(min_size=0, max_size=PAGE), st.integers(0, 1 << 40))
def test_any_bytes_can_be_looked_at(page: bytes, frame: int) -> None:
    parse_thread_block(page, frame * PAGE)


def test_a_stack_with_its_guard_below() -> None:
    read = reader({at(9): block(at(10), 77, (at(1), at(10)), PAGE)})
    finder = StackFinder([Thread(1077, 77, "worker-1")], read, None)
    assert told(finder.find(vma(2, 10), ("nh",), True)) == [(2, 10, "thread stack", "tid 1077 worker-1")]
    ended = StackFinder([], reader({at(9): block(at(10), 0, (at(1), at(10)), PAGE)}), None)
    assert told(ended.find(vma(2, 10), ("nh",), True)) == [(2, 10, "thread stack", "unused")]
    assert told(StackFinder([], read, None).find(vma(2, 10), (), True)) == [(2, 10, "thread stack", "")]


def test_stacks_that_touch_are_told_apart_by_their_blocks() -> None:
    # glibc 2.42: no VMA between them; the one in the middle is kept for later.
    pages = {
        at(9): block(at(10), 3, (at(0), at(10)), 2 * PAGE),
        at(19): block(at(20), 0, (at(10), at(20)), PAGE),
        at(29): block(at(30), 5, (at(20), at(30)), PAGE),
    }
    finder = StackFinder([Thread(3, 3, "a"), Thread(5, 5, "b")], reader(pages), None)
    assert told(finder.find(vma(0, 30), ("nh", "gu"), False)) == [
        (0, 2, "guard", "tid 3 a"),
        (2, 10, "thread stack", "tid 3 a"),
        (10, 11, "guard", "unused"),
        (11, 20, "thread stack", "unused"),
        (20, 21, "guard", "tid 5 b"),
        (21, 30, "thread stack", "tid 5 b"),
    ]


def test_below_the_last_block_guards_and_stack_pointers_decide() -> None:
    finder = StackFinder(
        [Thread(3, 3, "a", at(7)), Thread(5, 5, "b")],
        reader({at(19): block(at(20), 5, (at(10), at(20)), PAGE)}),
        lambda start, end: [(at(4), at(5))] if start <= at(4) < end else [],
    )
    assert told(finder.find(vma(0, 20), ("nh", "gu"), False)) == [
        (4, 5, "guard", "tid 3 a"),
        (5, 10, "thread stack", "tid 3 a"),
        (10, 11, "guard", "tid 5 b"),
        (11, 20, "thread stack", "tid 5 b"),
    ]


def test_a_stack_amid_other_memory() -> None:
    read = reader({at(13): block(at(14), 9, (at(6), at(14)))})
    finder = StackFinder([Thread(9, 9, "own", at(12) + 100)], read, None)
    assert told(finder.find(vma(0, 20), (), False)) == [(6, 14, "thread stack", "tid 9 own")]


def test_by_a_stack_pointer_alone() -> None:
    finder = StackFinder([Thread(9, 9, "musl", at(12)), Thread(8, 8, "other", at(13))], reader({}), None)
    assert told(finder.find(vma(0, 20), (), False)) == [(0, 20, "thread stack", "tids 9, 8")]
    assert told(finder.find(vma(0, 5000), (), False)) == [], "too large for a stack without a guard"
    assert told(finder.find(vma(0, 5000), (), True)) == [(0, 5000, "thread stack", "tids 9, 8")]
    assert told(finder.find(vma(20, 40), (), True)) == []


def test_where_memory_cannot_be_read() -> None:
    finder = StackFinder([], None, None)
    assert told(finder.find(vma(0, 20), ("nh",), True)) == [(0, 20, "thread stack", "")]
    assert told(finder.find(vma(0, 20), ("nh", "gu"), False)) == [(0, 20, "thread stack", "")]
    assert told(finder.find(vma(0, 20), ("nh",), False)) == []
    assert told(finder.find(vma(0, 20), (), True)) == []


def test_only_what_may_be_a_stack_is_looked_into() -> None:
    finder = StackFinder([Thread(1, 1, "x", at(3))], None, None)
    assert finder.may_hold(vma(0, 9), (), False), "a stack pointer is in it"
    assert finder.may_hold(vma(10, 19), ("nh",), False)
    assert finder.may_hold(vma(10, 19), ("gu",), False)
    assert finder.may_hold(vma(10, 19), (), True)
    assert not finder.may_hold(vma(10, 19), (), False)
    assert not finder.may_hold(vma(10, 11), (), True), "a page is none"
    assert not finder.may_hold(vma(0, 9, "r--p"), ("nh",), True)


@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), max_size=5),
    st.integers(1, 6),
    st.lists(st.integers(0, 60), max_size=6),
    st.booleans(),
)
def test_splitting_at_guards(
    first: int, slots: list[tuple[int, int]], tail: int, pointers: list[int], whole: bool
) -> None:
    """Each page is a guard's, or the stack's above the nearest guard below it; a thread is named where its page is."""
    guards: list[tuple[int, int]] = []
    position = first
    for gap, size in slots:
        position += gap + (1 if guards else 0)
        guards.append((at(position), at(position + size)))
        position += size
    end = position + tail
    threads = [Thread(i, i, "t", at(page)) for i, page in enumerate(pointers, 1) if page < end]
    found = split_at_guards(at(0), at(end), guards, threads, whole=whole)
    pages = {page: r for r in found for page in range(r.start, r.end, PAGE)}
    assert len(pages) * PAGE == sum(r.size for r in found), "none twice"
    in_guards = {page for low, high in guards for page in range(low, high, PAGE)}
    assert {page for page, r in pages.items() if r.name == "guard"} == in_guards
    lowest = guards[0][0] if guards else at(end)
    in_first = any(at(0) <= (thread.stack_pointer or 0) < lowest for thread in threads)
    for page in range(at(0), at(end), PAGE):
        assert (page in pages) == (page >= lowest or whole or in_first)
    for thread in threads:
        assert thread.stack_pointer is not None
        assert str(thread.tid) in pages[thread.stack_pointer].detail
