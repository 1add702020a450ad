"""How the books close: every byte of growth has a row, and the row names what caused it.

Sizes in these tests are pages; ``pages`` turns what comes out of the ledger back into them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model.blocks import Blocks
from tracer.model.classes import CLASSES
from tracer.model.events import Mapped, Protected, Remapped, Remapping, RssChange, Unmapped, VmaEvent
from tracer.model.ledger import Books, close_books
from tracer.model.report import ClassGrowth
from tracer.model.resident import ResidentPages
from tracer.model.tracker import Tracker
from tracer.model.vma import RssCounters, Snapshot, Vma, VmaUsage

PAGE = 4096
FAULT, OTHER_FAULT, MAPPER, OTHER_MAPPER, LEAKER, HOLDER = 0xF1, 0xF2, 0x31, 0x32, 0xA1, 0xA2
Rows = dict[tuple[str, str, int], float]


def vma(first: int, last: int, perms: str = "rw-p", path: bytes = b"") -> Vma:
    """Pages ``first`` to ``last``, the latter excluded."""
    return Vma(first * PAGE, last * PAGE, perms, 0, "00:00", 0, path)


def used(first: int, last: int, rss: int, perms: str = "rw-p", path: bytes = b"") -> VmaUsage:
    return VmaUsage(vma(first, last, perms, path), rss * PAGE)


def snapshot(usages: Iterable[VmaUsage], rss: int | None = None) -> Snapshot:
    rows = tuple(usages)
    return Snapshot(0, rows, RssCounters(anon=sum(row.rss for row in rows) if rss is None else rss))


def mapped(first: int, last: int, stack: int = 0, *, allocator: bool = False, brk: bool = False) -> Mapped:
    size = (last - first) * PAGE
    return Mapped(0, first * PAGE, size, "rw-p", False, 0, stack, allocator, "brk" if brk else "mmap")


def unmapped(first: int, last: int) -> Unmapped:
    return Unmapped(first * PAGE, (last - first) * PAGE)


def opened(first: int, last: int) -> Protected:
    return Protected(first * PAGE, (last - first) * PAGE, "rw-")


def moved(first: int, last: int, new: int, new_last: int) -> tuple[VmaEvent, VmaEvent]:
    start, size = first * PAGE, (last - first) * PAGE
    return Remapping(1, start, size, False), Remapped(1, start, size, new * PAGE, (new_last - new) * PAGE, False)


def faulted(stack: int, page: int, count: float) -> RssChange:
    return RssChange.at(stack, page * PAGE, "anon", "fault", int(count * PAGE))


def classes(rows: Snapshot, names: Mapping[int, str]) -> dict[int, str]:
    return {row.vma.start: names[row.vma.start // PAGE] for row in rows.usages if row.vma.start // PAGE in names}


@dataclass
class Window:
    """What a session knows at its end. Blocks are (page, pages, stack), ``names`` first pages of VMAs -> classes."""

    start: Sequence[VmaUsage] = ()
    end: Sequence[VmaUsage] = ()
    events: Sequence[VmaEvent] = ()
    faults: Sequence[RssChange] = ()
    blocks: Sequence[tuple[float, float, int]] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    start_names: Mapping[int, str] = field(default_factory=dict)
    resident: ResidentPages = field(default_factory=ResidentPages)
    allocators_traced: bool = True
    target_has_ended: bool = False  # then nothing tells the model what it lacks

    def close(self) -> Books:
        start, end = snapshot(self.start), snapshot(self.end)
        tracker = Tracker()
        tracker.seed(row.vma for row in self.start)
        for event in self.events:
            tracker.apply(event)
        tracker.add_rss(self.faults)
        if not self.target_has_ended:
            tracker.resync(row.vma for row in self.end)
        addresses, sizes = ([int(row[i] * PAGE) for row in self.blocks] for i in (0, 1))
        blocks = Blocks(addresses, sizes, [stack for _, _, stack in self.blocks], [0] * len(self.blocks))
        books = close_books(
            start,
            end,
            classes(end, self.names),
            classes(start, {**self.names, **self.start_names}),
            tracker,
            blocks,
            self.resident,
            allocators_traced=self.allocators_traced,
        )
        assert_closed(books, start, end)
        return books

    def rows(self) -> Rows:
        return pages(self.close())


def pages(books: Books) -> Rows:
    return {(row.vma_class, row.cause, int(row.stack, 16) if row.stack else 0): row.bytes / PAGE for row in books.rows}


def assert_closed(books: Books, start: Snapshot, end: Snapshot) -> None:
    """What holds for any books at all."""
    assert sum(row.bytes for row in books.rows) == end.counters.rss - start.counters.rss
    assert books.between_reads == end.counters.rss - start.counters.rss - (end.rss - start.rss)
    assert sum(row.growth for row in books.vmas) == end.rss - start.rss
    assert sum(row.rss for row in books.vmas) == end.rss
    assert sum(row.growth for row in books.classes) == end.rss - start.rss
    assert sum(row.rss_end for row in books.classes) == end.rss
    sizes = [sum(row.vma.size for row in rows.usages) for rows in (start, end)]
    assert sum(row.size_growth for row in books.classes) == sizes[1] - sizes[0]
    for row in books.classes:
        assert row.growth == sum(entry.growth for entry in books.vmas if entry.vma_class == row.name)
        booked = sum(entry.bytes for entry in books.rows if entry.vma_class == row.name)
        assert booked == row.growth
    assert all(row.bytes for row in books.rows)
    assert len({(row.vma_class, row.cause, row.stack) for row in books.rows}) == len(books.rows)
    assert [abs(row.bytes) for row in books.rows] == sorted((abs(row.bytes) for row in books.rows), reverse=True)


def test_nothing_happened() -> None:
    row = used(10, 20, 5)
    books = Window([row], [row]).close()
    assert books.rows == () and books.resident_by_stack == {}
    assert books.classes == (ClassGrowth("anonymous", 5 * PAGE, 5 * PAGE, 0),)


def test_live_blocks_and_what_the_allocator_keeps() -> None:
    window = Window(
        [used(10, 20, 10)],
        [used(10, 40, 30)],
        [mapped(20, 40, brk=True, allocator=True)],
        blocks=[(20, 4, LEAKER), (30, 3, LEAKER), (35, 5, HOLDER)],
        names={10: "heap"},
    )
    assert window.rows() == {
        ("heap", "live", LEAKER): 7,
        ("heap", "live", HOLDER): 5,
        ("heap", "kept-by-allocator", 0): 8,
    }
    assert window.close().resident_by_stack == {("live", LEAKER): 7 * PAGE, ("live", HOLDER): 5 * PAGE}


def test_live_blocks_in_memory_that_was_resident_before() -> None:
    window = Window([used(10, 20, 10)], [used(10, 20, 10)], blocks=[(12, 4, LEAKER)], names={10: "heap"})
    assert window.rows() == {("heap", "live", LEAKER): 4, ("heap", "reused", 0): -4}


def test_of_a_block_only_what_is_resident_counts() -> None:
    resident = ResidentPages([(10 * PAGE, 13 * PAGE), (15 * PAGE, 16 * PAGE)], [(10 * PAGE, 20 * PAGE)])
    window = Window(
        [used(10, 20, 1)], [used(10, 20, 4)], blocks=[(11.5, 8, LEAKER)], names={10: "heap"}, resident=resident
    )
    assert window.rows() == {("heap", "live", LEAKER): 2.5, ("heap", "kept-by-allocator", 0): 0.5}


def test_a_heap_that_gives_memory_back() -> None:
    window = Window([used(10, 20, 10)], [used(10, 15, 5)], [unmapped(15, 20)], names={10: "heap"})
    assert window.rows() == {("heap", "reused", 0): -5}


@pytest.mark.parametrize("name", ["heap", "malloc arena", "malloc mmapped"])
def test_what_was_there_in_a_class_of_the_allocator_is_its_own(name: str) -> None:
    window = Window([used(10, 20, 2)], [used(10, 20, 8)], faults=[faulted(FAULT, 12, 6)], names={10: name})
    assert window.rows() == {(name, "kept-by-allocator", 0): 6}


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"heap", "malloc arena", "malloc mmapped", "memtrace"}))
def test_elsewhere_the_cause_is_who_faulted(name: str) -> None:
    window = Window(
        [used(10, 20, 2)],
        [used(10, 20, 8)],
        faults=[faulted(FAULT, 12, 4), faulted(OTHER_FAULT, 19, 1)],
        names={10: name},
    )
    assert window.rows() == {
        (name, "faulted", FAULT): 4,
        (name, "faulted", OTHER_FAULT): 1,
        (name, "unexplained", 0): 1,
    }
    assert window.close().resident_by_stack == {("faulted", FAULT): 4 * PAGE, ("faulted", OTHER_FAULT): PAGE}


def test_faulted_and_given_back() -> None:
    window = Window([used(10, 20, 2)], [used(10, 20, 3)], faults=[faulted(FAULT, 12, 5)])
    assert window.rows() == {("anonymous", "faulted", FAULT): 5, ("anonymous", "released", 0): -4}


def called(call: str, page: int, count: int) -> RssChange:
    name = "ftruncate" if call == "other_call" else ""
    return RssChange(0, page // 64 * 64 * PAGE, 1 << page % 64, "anon", call, count * PAGE, name)


@pytest.mark.parametrize(
    ("call", "start", "end", "brought", "expected"),
    [
        ("madvise", 8, 3, -5, {"advised": -5}),
        ("madvise", 8, 5, -5, {"advised": -3}),  # what came otherwise has no cause to weigh against
        ("madvise", 8, 2, -5, {"advised": -5, "released": -1}),
        ("other_call", 8, 3, -5, {"released": -5}),
        ("madvise", 2, 8, 6, {"populated": 6}),
        ("other_call", 2, 9, 6, {"populated": 6, "unexplained": 1}),
    ],
)
def test_what_system_calls_did(call: str, start: int, end: int, brought: int, expected: dict[str, int]) -> None:
    window = Window([used(10, 20, start)], [used(10, 20, end)], faults=[called(call, 10, brought)])
    assert window.rows() == {("anonymous", cause, 0): amount for cause, amount in expected.items()}


def test_live_blocks_outside_of_the_classes_of_malloc() -> None:
    """As with jemalloc, whose memory looks like any other: where its blocks lie, it is the allocator's."""
    window = Window([used(10, 20, 2)], [used(10, 20, 9)], faults=[faulted(FAULT, 12, 7)], blocks=[(12, 3, LEAKER)])
    assert window.rows() == {("anonymous", "live", LEAKER): 3, ("anonymous", "kept-by-allocator", 0): 4}


def test_mapped_directly() -> None:
    window = Window([], [used(10, 20, 6)], [mapped(10, 20, MAPPER)], faults=[faulted(FAULT, 12, 6)])
    assert window.rows() == {("anonymous", "mapped", MAPPER): 6}
    (resident,) = window.close().resident_by_stack.items()
    assert resident[0][0] == "mapped" and resident[1] == 6 * PAGE


def test_mapped_without_a_stack() -> None:
    assert Window([], [used(10, 20, 6)], [mapped(10, 20)]).rows() == {("anonymous", "mapped", 0): 6}


def test_mapped_and_moved() -> None:
    events = [mapped(10, 20, MAPPER), *moved(10, 20, 50, 70)]
    assert Window([], [used(50, 70, 6)], events).rows() == {("anonymous", "mapped", MAPPER): 6}


def test_mapped_by_the_allocator() -> None:
    window = Window(
        [], [used(10, 20, 6)], [mapped(10, 20, allocator=True)], blocks=[(10, 5, LEAKER)], names={10: "malloc mmapped"}
    )
    assert window.rows() == {("malloc mmapped", "live", LEAKER): 5, ("malloc mmapped", "kept-by-allocator", 0): 1}


def test_mapped_by_an_allocator_that_looks_like_any_other_memory() -> None:
    """As with jemalloc after everything was freed: no block and no class tells whose it is."""
    window = Window([], [used(10, 20, 6)], [mapped(10, 20, allocator=True)])
    assert window.rows() == {("anonymous", "kept-by-allocator", 0): 6}


def test_a_heap_of_which_no_allocator_is_traced() -> None:
    """Its live blocks are not known, so who faulted is the cause that can be told."""
    window = Window(
        [used(10, 20, 2)],
        [used(10, 30, 9)],
        [mapped(20, 30, MAPPER, brk=True)],
        faults=[faulted(FAULT, 12, 3)],
        names={10: "heap"},
        resident=ResidentPages([(10 * PAGE, 15 * PAGE), (20 * PAGE, 24 * PAGE)], [(10 * PAGE, 30 * PAGE)]),
        allocators_traced=False,
    )
    assert window.rows() == {("heap", "faulted", FAULT): 3, ("heap", "mapped", MAPPER): 4}


def test_what_no_event_told_of_is_unexplained() -> None:
    assert Window([], [used(10, 20, 6)]).rows() == {("anonymous", "unexplained", 0): 6}


def test_what_the_probes_take_is_memtraces_own() -> None:
    window = Window([used(30, 31, 0)], [used(10, 11, 1), used(30, 31, 1)], names={10: "memtrace", 30: "memtrace"})
    assert window.rows() == {("memtrace", "memtrace", 0): 2}


def test_a_vma_that_is_gone() -> None:
    window = Window([used(10, 20, 6), used(30, 40, 1)], [used(30, 40, 1)], [unmapped(10, 20)], names={10: "file"})
    books = window.close()
    assert pages(books) == {("file", "unmapped", 0): -6}
    assert [(row.vma.start // PAGE, row.gone, row.rss, row.growth // PAGE) for row in books.vmas] == [
        (10, True, 0, -6),
        (30, False, PAGE, 0),
    ]
    assert ClassGrowth("file", 6 * PAGE, 0, -10 * PAGE) in books.classes


def test_a_vma_of_memtrace_that_is_gone() -> None:
    window = Window([used(10, 11, 1)], [], [unmapped(10, 11)], names={10: "memtrace"})
    assert window.rows() == {("memtrace", "memtrace", 0): -1}


def test_a_vma_that_changed_its_class_is_booked_to_the_new_one() -> None:
    window = Window([used(10, 20, 4)], [used(10, 20, 6)], names={10: "jit"}, start_names={10: "anonymous"})
    assert window.close().classes == (ClassGrowth("jit", 4 * PAGE, 6 * PAGE, 0),)


def test_a_seed_that_was_split() -> None:
    """Where most of it lies, its start and its faults are booked; its other part starts from nothing."""
    window = Window(
        [used(10, 40, 20)],
        [used(10, 15, 5), used(20, 40, 18)],
        [unmapped(15, 20)],
        faults=[faulted(FAULT, 11, 3), faulted(FAULT, 30, 4)],
        names={10: "anonymous", 20: "jit"},
    )
    books = window.close()
    assert {row.vma.start // PAGE: row.growth // PAGE for row in books.vmas} == {10: 5, 20: -2}
    assert pages(books) == {
        ("anonymous", "unexplained", 0): 5,
        ("jit", "faulted", FAULT): 7,
        ("jit", "unmapped", 0): -9,
    }


def test_two_seeds_that_became_one_vma() -> None:
    window = Window([used(10, 20, 3), used(20, 40, 4)], [used(10, 40, 9)], faults=[faulted(FAULT, 12, 2)])
    assert sum(window.rows().values()) == 2
    assert window.rows()[("anonymous", "faulted", FAULT)] == 2


def test_a_heap_with_direct_brk_and_allocator_ranges() -> None:
    """A program that calls sbrk by itself shares [heap] with malloc."""
    looked_at = [(10 * PAGE, 40 * PAGE)]
    resident = ResidentPages([(10 * PAGE, 18 * PAGE), (20 * PAGE, 27 * PAGE), (30 * PAGE, 36 * PAGE)], looked_at)
    window = Window(
        [used(10, 20, 8)],
        [used(10, 40, 21)],
        [mapped(20, 30, MAPPER, brk=True), mapped(30, 40, brk=True, allocator=True)],
        blocks=[(30, 4, LEAKER)],
        names={10: "heap"},
        resident=resident,
    )
    assert window.rows() == {
        ("heap", "mapped", MAPPER): 7,
        ("heap", "live", LEAKER): 4,
        ("heap", "kept-by-allocator", 0): 2,
    }


def test_two_direct_mappings_in_one_vma() -> None:
    resident = ResidentPages([(10 * PAGE, 12 * PAGE), (25 * PAGE, 28 * PAGE)], [(10 * PAGE, 30 * PAGE)])
    window = Window(
        [],
        [used(10, 30, 6)],  # one page more than the later look at the pages found
        [mapped(10, 20, MAPPER), mapped(20, 30, OTHER_MAPPER)],
        resident=resident,
    )
    assert window.rows() == {
        ("anonymous", "mapped", MAPPER): 2,
        ("anonymous", "mapped", OTHER_MAPPER): 3,
        ("anonymous", "unexplained", 0): 1,
    }


def test_a_reserve_that_was_opened() -> None:
    window = Window(
        [used(10, 50, 0, "---p")],
        [used(10, 20, 6), used(20, 50, 0, "---p")],
        [opened(10, 20)],
        faults=[faulted(FAULT, 12, 6)],
        names={20: "guard"},
    )
    assert window.rows() == {("anonymous", "faulted", FAULT): 6}


def test_an_arena_that_grew_into_its_reserve() -> None:
    window = Window(
        [used(10, 20, 10), used(20, 50, 0, "---p")],
        [used(10, 30, 18), used(30, 50, 0, "---p")],
        [opened(20, 30)],
        faults=[faulted(FAULT, 22, 8)],
        blocks=[(21, 5, LEAKER)],
        names={10: "malloc arena", 20: "guard", 30: "guard"},
    )
    assert window.rows() == {("malloc arena", "live", LEAKER): 5, ("malloc arena", "kept-by-allocator", 0): 3}


def test_what_changed_between_reading_the_vmas_and_the_counters() -> None:
    start, end = snapshot([used(10, 20, 4)], 7 * PAGE), snapshot([used(10, 20, 4)], 12 * PAGE)
    tracker = Tracker()
    tracker.seed(row.vma for row in start.usages)
    books = close_books(start, end, {}, {}, tracker, Blocks([], [], [], []), ResidentPages())
    assert_closed(books, start, end)
    assert books.between_reads == 5 * PAGE
    assert pages(books) == {("while reading", "unexplained", 0): 5}


def test_stacks_are_named_by_sixteen_digits() -> None:
    (row,) = Window([], [used(10, 20, 6)], [mapped(10, 20, MAPPER)]).close().rows
    assert row.stack == "0000000000000031"


def test_classes_are_sorted_by_what_they_grew() -> None:
    start = [used(10, 20, 1), used(20, 30, 9), used(30, 40, 1)]
    window = Window(
        start, [used(10, 20, 2), used(20, 30, 2), used(30, 40, 4)], names={10: "jit", 20: "file", 30: "heap"}
    )
    assert [(row.name, row.growth // PAGE) for row in window.close().classes] == [("file", -7), ("heap", 3), ("jit", 1)]


# What the books get wrong so far. Each of these sums up, but names the wrong cause.


def test_a_vma_that_the_model_no_longer_has() -> None:
    """The target unmapped it after the last look at its VMAs, and ended."""
    window = Window([used(10, 20, 6)], [used(10, 20, 8)], [unmapped(10, 20)], target_has_ended=True)
    assert sum(window.rows().values()) == 2


def test_a_reserve_that_was_opened_in_two_places() -> None:
    window = Window(
        [used(10, 90, 0, "---p")],
        [used(10, 20, 6), used(20, 50, 0, "---p"), used(50, 60, 5), used(60, 90, 0, "---p")],
        [opened(10, 20), opened(50, 60)],
        faults=[faulted(FAULT, 12, 6), faulted(OTHER_FAULT, 52, 5)],
        names={20: "guard", 60: "guard"},
    )
    assert window.rows() == {("anonymous", "faulted", FAULT): 6, ("anonymous", "faulted", OTHER_FAULT): 5}
    assert window.close().resident_by_stack == {("faulted", FAULT): 6 * PAGE, ("faulted", OTHER_FAULT): 5 * PAGE}


def test_a_block_over_the_old_end_of_the_heap() -> None:
    """What is left at the top of the heap and what brk adds to it are one block."""
    window = Window(
        [used(10, 20, 10)],
        [used(10, 60, 50)],
        [mapped(20, 60, brk=True, allocator=True)],
        blocks=[(18, 42, LEAKER)],
        names={10: "heap"},
    )
    assert window.rows() == {("heap", "live", LEAKER): 42, ("heap", "reused", 0): -2}


def test_a_seed_of_which_one_part_is_the_allocators() -> None:
    resident = ResidentPages([(10 * PAGE, 40 * PAGE)], [(10 * PAGE, 40 * PAGE)])
    window = Window(
        [used(10, 40, 30)],
        [used(10, 40, 30)],
        [unmapped(20, 22), mapped(20, 22, MAPPER)],
        blocks=[(12, 3, LEAKER)],
        resident=resident,
    )
    rows = window.rows()
    assert rows[("anonymous", "mapped", MAPPER)] == 2 and rows[("anonymous", "live", LEAKER)] == 3
    assert rows.get(("anonymous", "unexplained", 0), 0) == 0


def test_two_direct_mappings_of_which_nothing_was_touched() -> None:
    """A VMA without resident memory is not looked at (session, _resident_pages)."""
    window = Window(
        [],
        [used(10, 30, 0)],
        [mapped(10, 20, MAPPER), mapped(20, 30, OTHER_MAPPER)],
        resident=ResidentPages([], [(100 * PAGE, 200 * PAGE)]),
    )
    assert window.rows() == {}


def test_a_block_that_was_never_touched() -> None:
    window = Window(
        [],
        [used(10, 30, 0)],
        [mapped(10, 30, allocator=True)],
        blocks=[(10, 20, LEAKER)],
        resident=ResidentPages([], [(100 * PAGE, 200 * PAGE)]),
    )
    assert window.rows() == {}


SPAN = 60
ANY_RANGE = st.tuples(st.integers(1, SPAN), st.integers(1, 12)).map(lambda row: (row[0], row[0] + row[1]))
STACKS = st.sampled_from([0, MAPPER, OTHER_MAPPER])
EVENTS: st.SearchStrategy[Sequence[VmaEvent]] = st.one_of(
    st.builds(
        lambda row, stack, allocator, brk: (mapped(row[0], row[1], stack, allocator=allocator, brk=brk),),
        ANY_RANGE,
        STACKS,
        st.booleans(),
        st.booleans(),
    ),
    st.builds(lambda row: (unmapped(*row),), ANY_RANGE),
    st.builds(lambda row: (opened(*row),), ANY_RANGE),
    st.builds(lambda row, new: moved(*row, *new), ANY_RANGE, ANY_RANGE),
)


@st.composite
def usages(draw: st.DrawFn) -> list[VmaUsage]:
    rows: list[VmaUsage] = []
    position = 1
    for gap, size, perms in draw(
        st.lists(st.tuples(st.integers(0, 4), st.integers(1, 15), st.sampled_from(["rw-p", "---p"])), max_size=7)
    ):
        first = position + gap
        position = first + size
        rows.append(used(first, position, draw(st.integers(0, size)), perms))
    return rows


NAMES = st.dictionaries(st.integers(1, SPAN), st.sampled_from(CLASSES), max_size=20)


@st.composite
def residents(draw: st.DrawFn) -> ResidentPages:
    looked_at = sorted((row.vma.start, row.vma.end) for row in draw(usages()))
    runs = [(start, draw(st.integers(start + 1, end))) for start, end in looked_at if draw(st.booleans())]
    return ResidentPages(runs, looked_at)


WINDOWS = st.builds(
    Window,
    start=usages(),
    end=usages(),
    events=st.lists(EVENTS, max_size=15).map(lambda batches: [event for batch in batches for event in batch]),
    faults=st.lists(
        st.builds(faulted, st.sampled_from([FAULT, OTHER_FAULT]), st.integers(0, SPAN), st.integers(-3, 9)), max_size=8
    ),
    blocks=st.lists(
        st.tuples(st.floats(1, SPAN), st.floats(0, 6), st.sampled_from([LEAKER, HOLDER])),
        max_size=8,
        unique_by=lambda row: row[0],
    ),
    names=NAMES,
    start_names=NAMES,
    resident=residents(),
    allocators_traced=st.booleans(),
)


@given(WINDOWS)
@settings(max_examples=200, deadline=None)
def test_any_books_close(window: Window) -> None:
    """``close`` itself asserts it."""
    books = window.close()
    assert {row.cause for row in books.rows} <= {
        "live",
        "kept-by-allocator",
        "reused",
        "mapped",
        "faulted",
        "populated",
        "advised",
        "unmapped",
        "released",
        "memtrace",
        "unexplained",
    }
    for row in books.rows:
        assert (row.bytes > 0) if row.cause in ("kept-by-allocator", "live", "mapped", "populated") else True
        assert (row.bytes < 0) if row.cause in ("reused", "released", "advised", "unmapped") else True


@given(WINDOWS, st.integers(-9, 9), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_any_books_close_against_the_counters(window: Window, before: int, after: int) -> None:
    start = snapshot(window.start, sum(row.rss for row in window.start) + before * PAGE)
    end = snapshot(window.end, after * PAGE)
    tracker = Tracker()
    tracker.seed(row.vma for row in window.start)
    tracker.resync(row.vma for row in window.end)
    books = close_books(start, end, {}, {}, tracker, Blocks([], [], [], []), window.resident)
    assert sum(row.bytes for row in books.rows) == end.counters.rss - start.counters.rss
