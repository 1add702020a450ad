"""The address space as events leave it: who mapped each page, against a table that keeps every page by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model.events import (
    Attached,
    Detaching,
    Kept,
    MapKind,
    Mapped,
    Protected,
    Remapped,
    Remapping,
    RssChange,
    Unmapped,
    VmaEvent,
)
from tracer.model.ranges import Resync
from tracer.model.tracker import Origin, Tracker
from tracer.model.vma import Vma

PAGE = 4096
PAGES = 40


def vma(first: int, last: int, perms: str = "rw-p", path: bytes = b"", inode: int = 0, offset: int = 0) -> Vma:
    """Pages ``first`` to ``last``, the latter excluded."""
    return Vma(first * PAGE, last * PAGE, perms, offset * PAGE, "fe:00" if inode else "00:00", inode, path)


def mapped(
    first: int,
    last: int,
    stack: int = 0,
    *,
    allocator: bool = False,
    kind: MapKind = "mmap",
    perms: str = "rw-p",
    at: int = 0,
) -> Mapped:
    return Mapped(at, first * PAGE, (last - first) * PAGE, perms, False, 0, stack, allocator, kind)


def unmapped(first: int, last: int, tid: int = 0) -> Unmapped:
    return Unmapped(first * PAGE, (last - first) * PAGE, tid)


def attached(first: int, last: int, stack: int = 0, *, segment: int = 77, at: int = 0) -> Attached:
    return Attached(at, first * PAGE, segment, "rw-s", stack, False, (last - first) * PAGE)


def detaching(first: int, tid: int = 0) -> Detaching:
    return Detaching(first * PAGE, tid)


def remapping(first: int, last: int, tid: int = 1, *, keep: bool = False) -> Remapping:
    return Remapping(tid, first * PAGE, (last - first) * PAGE, keep)


def remapped(
    first: int, last: int, new: int | None, new_last: int = 0, tid: int = 1, *, keep: bool = False
) -> Remapped:
    new_start = None if new is None else new * PAGE
    length = (new_last - (new or 0)) * PAGE
    return Remapped(tid, first * PAGE, (last - first) * PAGE, new_start, length, keep)


def protected(first: int, last: int, perms: str) -> Protected:
    return Protected(first * PAGE, (last - first) * PAGE, perms)


def tracked(*vmas: Vma, events: Iterable[VmaEvent] = ()) -> Tracker:
    tracker = Tracker()
    tracker.seed(vmas)
    for event in events:
        tracker.apply(event)
    return tracker


def name(origin: Origin) -> str:
    """A seed is named by its first page, the others by what mapped them."""
    if origin.vma is not None:
        return f"seed {origin.vma.start // PAGE}"
    return f"{origin.kind} {origin.stack}" if origin.stack else origin.kind


def layout(tracker: Tracker) -> list[tuple[int, int, str]]:
    """The ranges as (first page, last page, origin), those with the same origin put together."""
    rows: list[tuple[int, int, str]] = []
    for range_ in tracker.ranges:
        row = range_.start // PAGE, range_.end // PAGE, name(tracker.origins[range_.origin])
        if rows and rows[-1][1:] == (row[0], row[2]):
            row = rows.pop()[0], row[1], row[2]
        rows.append(row)
    return rows


def origin(tracker: Tracker, page: int) -> Origin:
    (range_,) = tracker.ranges.overlapping(page * PAGE, (page + 1) * PAGE)
    return tracker.origins[range_.origin]


def test_each_vma_of_the_start_is_an_origin() -> None:
    first, second = vma(0, 2), vma(2, 3)
    tracker = tracked(first, second)
    assert layout(tracker) == [(0, 2, "seed 0"), (2, 3, "seed 2")], "although they are alike"
    assert origin(tracker, 1) == Origin("seed", vma=first)
    assert origin(tracker, 2) == Origin("seed", vma=second)


def test_a_file_is_seeded_with_its_place() -> None:
    tracker = tracked(vma(4, 6, "r-xp", b"/bin/x", inode=7, offset=3))
    (range_,) = tracker.ranges
    assert (range_.inode, range_.device, range_.offset, range_.perms) == (7, "fe:00", 3 * PAGE, "r-xp")


def test_mapped_directly_by_two_stacks() -> None:
    tracker = tracked(events=[mapped(0, 2, 7, at=50), mapped(2, 3, 8, at=60), mapped(5, 9, 7, at=70)])
    assert layout(tracker) == [(0, 2, "mmap 7"), (2, 3, "mmap 8"), (5, 9, "mmap 7")]
    assert origin(tracker, 0) is origin(tracker, 8)
    assert origin(tracker, 0) == Origin("mmap", None, 7, mapped_bytes=6 * PAGE, mapped_count=2, first_ns=50)


def test_the_same_stack_by_mmap_and_by_brk() -> None:
    tracker = tracked(events=[mapped(0, 1, 7), mapped(1, 2, 7, kind="brk")])
    assert layout(tracker) == [(0, 1, "mmap 7"), (1, 2, "brk 7")]


def test_mapped_by_the_allocator() -> None:
    events = [mapped(0, 1, allocator=True), mapped(3, 5, kind="brk", allocator=True), mapped(1, 2, 7)]
    tracker = tracked(events=events)
    assert layout(tracker) == [(0, 1, "allocator"), (1, 2, "mmap 7"), (3, 5, "allocator")]
    assert (origin(tracker, 0).mapped_bytes, origin(tracker, 0).mapped_count) == (3 * PAGE, 2)


def test_mapped_over_what_was_there() -> None:
    tracker = tracked(vma(0, 10), events=[mapped(3, 5, 7)])
    assert layout(tracker) == [(0, 3, "seed 0"), (3, 5, "mmap 7"), (5, 10, "seed 0")]


def test_unmapped() -> None:
    tracker = tracked(vma(0, 10), events=[unmapped(0, 1), unmapped(4, 6), unmapped(9, 30)])
    assert layout(tracker) == [(1, 4, "seed 0"), (6, 9, "seed 0")]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([remapping(0, 4), remapped(0, 4, 0, 2)], [(0, 2, "seed 0")], id="shrunk"),
        pytest.param([remapping(0, 4), remapped(0, 4, 0, 6)], [(0, 6, "seed 0")], id="grown in place"),
        pytest.param([remapping(0, 4), remapped(0, 4, 10, 14)], [(10, 14, "seed 0")], id="moved"),
        pytest.param([remapping(0, 4), remapped(0, 4, 10, 19)], [(10, 19, "seed 0")], id="moved and grown"),
        pytest.param([remapping(0, 4), remapped(0, 4, 10, 11)], [(10, 11, "seed 0")], id="moved and shrunk"),
        pytest.param([remapping(0, 4), remapped(0, 4, None)], [(0, 4, "seed 0")], id="failed"),
        pytest.param(
            [remapping(1, 3), remapped(1, 3, 10, 12)],
            [(0, 1, "seed 0"), (3, 4, "seed 0"), (10, 12, "seed 0")],
            id="a part moved",
        ),
        pytest.param(
            [remapping(0, 4, keep=True), remapped(0, 4, 10, 14, keep=True)],
            [(0, 4, "seed 0"), (10, 14, "seed 0")],
            id="old kept",
        ),
        pytest.param([remapping(0, 4, keep=True), remapped(0, 4, None, keep=True)], [(0, 4, "seed 0")], id="kept"),
        pytest.param(
            [remapping(0, 0), remapped(0, 0, 10, 12)], [(0, 4, "seed 0"), (10, 12, "seed 0")], id="mapped twice"
        ),
        pytest.param([remapped(0, 4, 10, 14)], [(10, 14, "seed 0")], id="entered before tracing began"),
        pytest.param(
            [remapping(20, 24), remapped(20, 24, 10, 14)], [(0, 4, "seed 0")], id="of what is not known to be mapped"
        ),
        pytest.param(
            [mapped(0, 2, 7), remapping(0, 4), remapped(0, 4, 10, 15)],
            [(10, 12, "mmap 7"), (12, 15, "seed 0")],
            id="two origins: the last one grows",
        ),
        pytest.param(
            [mapped(0, 2, 7), remapping(0, 4), remapped(0, 4, 10, 11)], [(10, 11, "mmap 7")], id="the last one is cut"
        ),
        pytest.param(
            [unmapped(1, 2), remapping(0, 4), remapped(0, 4, 10, 14)],
            [(10, 11, "seed 0"), (12, 14, "seed 0")],
            id="a hole moves along",
        ),
        pytest.param(
            [unmapped(3, 4), remapping(0, 4), remapped(0, 4, 10, 20)],
            [(10, 13, "seed 0")],
            id="a hole at the end does not grow",
        ),
    ],
)
def test_remapped(events: list[VmaEvent], expected: list[tuple[int, int, str]]) -> None:
    assert layout(tracked(vma(0, 4), events=events)) == expected


def test_the_hole_of_a_move_taken_by_another_thread() -> None:
    events: list[VmaEvent] = [remapping(0, 4), mapped(1, 3, 7), remapped(0, 4, 10, 14)]
    assert layout(tracked(vma(0, 4), events=events)) == [(1, 3, "mmap 7"), (10, 14, "seed 0")]


def test_the_hole_of_a_failed_call_taken_by_another_thread() -> None:
    events: list[VmaEvent] = [remapping(0, 4), mapped(1, 3, 7), remapped(0, 4, None)]
    assert layout(tracked(vma(0, 4), events=events)) == [(0, 1, "seed 0"), (1, 3, "mmap 7"), (3, 4, "seed 0")]


def test_the_tail_of_a_shrunk_mapping_taken_by_another_thread() -> None:
    events: list[VmaEvent] = [remapping(0, 4), mapped(2, 3, 7), remapped(0, 4, 0, 2)]
    assert layout(tracked(vma(0, 4), events=events)) == [(0, 2, "seed 0"), (2, 3, "mmap 7")]


def test_what_a_mapping_grew_by_is_its_origins() -> None:
    tracker = tracked(events=[mapped(0, 4, 7), remapping(0, 4), remapped(0, 4, 10, 16)])
    assert (origin(tracker, 10).mapped_bytes, origin(tracker, 10).mapped_count) == (6 * PAGE, 1)
    for event in (remapping(10, 16), remapped(10, 16, 10, 12)):
        tracker.apply(event)
    assert origin(tracker, 10).mapped_bytes == 6 * PAGE, "mapped in all, also what is gone"


def test_two_threads_remap_at_the_same_time() -> None:
    tracker = tracked(vma(0, 4), vma(10, 14, perms="r--p"))
    for event in (remapping(0, 4, 1), remapping(10, 14, 2), remapped(0, 4, 20, 24, 1), remapped(10, 14, None, tid=2)):
        tracker.apply(event)
    assert layout(tracker) == [(10, 14, "seed 10"), (20, 24, "seed 0")]


def test_a_moved_file_keeps_its_offsets() -> None:
    tracker = tracked(vma(0, 4, inode=7, offset=5), events=[remapping(1, 3), remapped(1, 3, 20, 23)])
    assert [(row.start // PAGE, row.end // PAGE, row.offset // PAGE) for row in tracker.ranges] == [
        (0, 1, 5),
        (3, 4, 8),
        (20, 23, 6),
    ]


def test_a_reserve_that_is_opened_is_no_longer_the_seeds() -> None:
    tracker = tracked(vma(0, 10, "---p"), vma(10, 20, "---p"))
    for event in (protected(0, 2, "rw-"), protected(4, 5, "rw-"), protected(18, 20, "rw-")):
        tracker.apply(event)
    assert layout(tracker) == [
        (0, 2, "opened"),
        (2, 4, "seed 0"),
        (4, 5, "opened"),
        (5, 10, "seed 0"),
        (10, 18, "seed 10"),
        (18, 20, "opened"),
    ]
    assert [row.perms for row in tracker.ranges] == ["rw-p", "---p", "rw-p", "---p", "---p", "rw-p"]
    assert origin(tracker, 0) is not origin(tracker, 4), "opened apart"
    tracker.apply(protected(2, 3, "rw-"))
    assert origin(tracker, 0) is origin(tracker, 2), "opened behind the last piece, as an arena grows"


def test_only_reserves_of_the_start_are_opened() -> None:
    tracker = tracked(vma(0, 4, "r--p"), events=[mapped(4, 8, 7, perms="---p")])
    tracker.apply(protected(0, 8, "rw-"))
    assert layout(tracker) == [(0, 4, "seed 0"), (4, 8, "mmap 7")]
    assert {row.perms for row in tracker.ranges} == {"rw-p"}


def test_what_was_opened_and_closed_stays_opened() -> None:
    tracker = tracked(
        vma(0, 4, "---p"), events=[protected(0, 2, "rw-"), protected(0, 2, "---"), protected(0, 2, "rw-")]
    )
    assert layout(tracker) == [(0, 2, "opened"), (2, 4, "seed 0")]


def test_what_was_not_unmapped_after_all_is_put_back() -> None:
    tracker = tracked(vma(0, 8), events=[mapped(8, 10, 7)])
    events: list[VmaEvent] = [unmapped(2, 9, tid=1), unmapped(0, 1, tid=2), mapped(4, 5, 9), Kept(1)]
    for event in events:
        tracker.apply(event)
    expected = [(1, 4, "seed 0"), (4, 5, "mmap 9"), (5, 8, "seed 0"), (8, 10, "mmap 7")]
    assert layout(tracker) == expected
    tracker.apply(Kept(1))
    tracker.apply(Kept(3))
    assert layout(tracker) == expected, "once, and only what this thread has released"


@pytest.mark.parametrize("segment", [77, 0])
def test_a_segment_is_mapped_by_who_attached_it(segment: int) -> None:
    tracker = tracked(events=[attached(4, 8, 7, segment=segment, at=50)])
    (range_,) = tracker.ranges
    assert (range_.perms, range_.inode, range_.offset) == ("rw-s", segment, 0)
    assert origin(tracker, 4) == Origin("mmap", None, 7, mapped_bytes=4 * PAGE, mapped_count=1, first_ns=50)
    tracker.apply(detaching(4))
    assert layout(tracker) == []


def test_a_segment_of_unknown_length_is_left_to_the_next_resync() -> None:
    tracker = tracked(vma(0, 4), events=[Attached(0, 8 * PAGE, 77, "rw-s", 7, False)])
    assert layout(tracker) == [(0, 4, "seed 0")]


def test_detaching_takes_what_is_left_of_a_segment() -> None:
    segment = vma(4, 10, "rw-s", b"/SYSV00000000 (deleted)", inode=77)
    others = [vma(0, 4, "rw-s", b"/f", inode=5), vma(10, 12, "rw-s", b"/f", inode=77, offset=9), vma(20, 21)]
    tracker = tracked(*others, segment)
    for event in (unmapped(4, 5), unmapped(7, 8), mapped(7, 8, 3), protected(8, 9, "r--"), detaching(4)):
        tracker.apply(event)
    assert layout(tracker) == [(0, 4, "seed 0"), (7, 8, "mmap 3"), (10, 12, "seed 10"), (20, 21, "seed 20")]
    tracker.apply(Kept(0))
    rest = [(5, 7, "seed 4"), (7, 8, "mmap 3"), (8, 10, "seed 4")]
    assert layout(tracker) == [(0, 4, "seed 0"), *rest, (10, 12, "seed 10"), (20, 21, "seed 20")], "it was refused"


def test_detaching_is_by_where_the_segment_would_begin() -> None:
    """A segment attached twice, and moved by mremap: only the one at this address goes."""
    tracker = tracked(vma(0, 4, "rw-s", b"/SYSV", inode=77), events=[attached(4, 8, 7), attached(12, 16, 7)])
    tracker.apply(remapping(12, 16))
    tracker.apply(remapped(12, 16, 20, 24))
    tracker.apply(detaching(4))
    assert layout(tracker) == [(0, 4, "seed 0"), (20, 24, "mmap 7")]
    for page in (0, 20):
        tracker.apply(detaching(page))
    assert layout(tracker) == []
    tracker.apply(mapped(4, 8, perms="rw-p"))
    tracker.apply(detaching(4))
    assert layout(tracker) == [(4, 8, "mmap")], "private memory is no segment"


def test_resync_keeps_what_was_right() -> None:
    tracker = tracked(vma(0, 4), events=[mapped(4, 6, 7), mapped(20, 22, 8)])
    assert tracker.resync([vma(0, 8), vma(30, 31)]) == Resync(added_bytes=3 * PAGE, removed_bytes=2 * PAGE)
    assert layout(tracker) == [(0, 4, "seed 0"), (4, 6, "mmap 7"), (6, 8, "unknown"), (30, 31, "unknown")]
    assert tracker.resync([vma(0, 8), vma(30, 31)]) == Resync(0, 0)


def test_a_new_seed_forgets_everything() -> None:
    tracker = tracked(vma(0, 4, "---p"), events=[mapped(4, 6, 7), protected(0, 1, "rw-"), remapping(4, 6)])
    tracker.add_rss([RssChange.at(5, PAGE, "anon", "fault", PAGE)])
    tracker.advised[4] += 1
    tracker.seed([vma(0, 4, "---p")])
    assert layout(tracker) == [(0, 4, "seed 0")]
    assert not tracker.faulted and not tracker.rss_by_cause and not tracker.advised
    tracker.apply(remapped(4, 6, 10, 12))
    tracker.apply(mapped(20, 21, 7, at=9))
    tracker.apply(protected(0, 1, "rw-"))
    assert layout(tracker) == [(0, 1, "opened"), (1, 4, "seed 0"), (20, 21, "mmap 7")]
    assert origin(tracker, 20) == Origin("mmap", None, 7, PAGE, 1, 9)


def faults(tracker: Tracker) -> dict[tuple[str, int], int]:
    return {(name(tracker.origins[index]), stack): size for (index, stack), size in tracker.faulted.items()}


def test_faults_go_to_the_range_in_which_they_lie() -> None:
    tracker = tracked(vma(1, 4), vma(4, 8), events=[mapped(8, 10, 7)])
    tracker.add_rss(
        RssChange.at(stack, page * PAGE, member, "fault", size * PAGE)
        for stack, page, member, size in (
            (1, 1, "anon", 1),
            (1, 3, "anon", 2),
            (1, 4, "file", 4),
            (2, 3, "shmem", 8),
            (1, 9, "anon", 16),
            (1, 10, "anon", 32),  # nothing is mapped there
            (0, 3, "anon", 64),  # no stack
            (1, 3, "swap", 128),  # no part of RSS
            (1, 3, "anon", -1),
        )
    )
    assert faults(tracker) == {
        ("seed 1", 1): 2 * PAGE,
        ("seed 4", 1): 4 * PAGE,
        ("seed 1", 2): 8 * PAGE,
        ("mmap 7", 1): 16 * PAGE,
        ("unknown", 1): 32 * PAGE,
    }


def test_the_page_zero_means_that_no_address_is_known() -> None:
    tracker = tracked(vma(0, 4))
    tracker.add_rss([RssChange.at(1, 0, "anon", "other_call", PAGE)])
    assert faults(tracker) == {("unknown", 1): PAGE}


def test_every_change_of_rss_is_summed_by_its_cause() -> None:
    tracker = tracked()
    tracker.add_rss([RssChange.at(0, 0, "anon", "fault", 5), RssChange.at(1, 0, "anon", "fault", -2)])
    tracker.add_rss([RssChange.at(0, 0, "swap", "other_context", 7)])
    tracker.add_rss([RssChange(0, 0, 0, "file", "other_call", -9, "ftruncate")])
    assert tracker.rss_by_cause == {
        ("anon", "fault", False): 5,
        ("anon", "fault", True): -2,
        ("swap", "other-context", False): 7,
        ("file", "ftruncate", True): -9,
    }


def test_pages_of_a_block_go_to_the_ranges_in_which_they_lie() -> None:
    tracker = tracked(vma(64, 66), vma(66, 70), vma(80, 90))
    # Pages 65, 66, 67, 75 and 80: one in the first, two in the second, one nowhere, one in the third.
    pages = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 11 | 1 << 16
    tracker.add_rss([RssChange(7, 64 * PAGE, pages, "anon", "fault", 5 * PAGE)])
    first, second, third = (tracker.ranges.overlapping(page * PAGE, page * PAGE + 1)[0].origin for page in (64, 66, 80))
    assert tracker.faulted == {(first, 7): PAGE, (second, 7): 2 * PAGE, (third, 7): PAGE, (0, 7): PAGE}


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), max_size=8),
    st.integers(0, 2),
    st.integers(1, (1 << 64) - 1),
    st.integers(-(1 << 40), 1 << 40),
)
def test_no_byte_of_a_change_is_lost(places: list[tuple[int, int]], block: int, pages: int, size: int) -> None:
    tracker = tracked(events=[mapped(start, start + length, stack=start + 1) for start, length in places])
    tracker.add_rss([RssChange(9, (block + 1) * 64 * PAGE, pages, "anon", "fault", size)])
    assert sum(tracker.faulted.values()) == size


def test_what_calls_brought_is_kept_by_origin() -> None:
    tracker = tracked(vma(64, 128))
    tracker.add_rss([RssChange.at(0, 64 * PAGE, "anon", "madvise", -3 * PAGE)])
    tracker.add_rss([RssChange(0, 64 * PAGE, 1, "anon", "other_call", 2 * PAGE, "mlock")])
    origin = tracker.ranges.overlapping(64 * PAGE, 65 * PAGE)[0].origin
    assert tracker.called == {(origin, "madvise"): -3 * PAGE, (origin, "mlock"): 2 * PAGE}


@dataclass
class Oracle:
    """Page -> (permissions, name of its origin), each event as its manual page has it."""

    pages: dict[int, tuple[str, str]] = field(default_factory=dict)
    entered: dict[int, dict[int, tuple[str, str]]] = field(default_factory=dict)
    released: dict[int, dict[int, tuple[str, str]]] = field(default_factory=dict)

    def apply(self, event: VmaEvent) -> None:
        match event:
            case Mapped():
                who = "allocator" if event.in_allocator else f"{event.kind} {event.stack}"
                self.pages |= dict.fromkeys(pages_of(event.start, event.length), (event.perms, who))
            case Unmapped():
                self.released[event.tid] = self.take(event.start, event.length)
            case Kept():
                self.pages = self.released.pop(event.tid, {}) | self.pages
            case Attached(length=int(length)):
                self.pages |= dict.fromkeys(pages_of(event.start, length), (event.perms, f"mmap {event.stack}"))
            case Detaching():
                # The segments of this test are 5 pages long, each has its number, and none moves.
                place = event.start // PAGE
                content = {page: value for page in range(place, place + 5) if (value := self.pages.get(page))}
                mine = f"mmap {segment_at(place)}"
                self.released[event.tid] = {page: value for page, value in content.items() if value[1] == mine}
                for page in self.released[event.tid]:
                    del self.pages[page]
            case Protected():
                for page in pages_of(event.start, event.length):
                    if page in self.pages:
                        perms, who = self.pages[page]
                        is_reserve = perms.startswith("---") and who.startswith("seed")
                        self.pages[page] = event.perms + perms[3], "opened" if is_reserve else who
            case Remapping():
                if event.length and not event.keep_old:
                    self.entered[event.tid] = self.take(event.start, event.length)
            case Remapped():
                self.remap(event)

    def take(self, start: int, length: int) -> dict[int, tuple[str, str]]:
        return {page: self.pages.pop(page) for page in pages_of(start, length) if page in self.pages}

    def remap(self, event: Remapped) -> None:
        taken = self.entered.pop(event.tid, None)
        if event.new_start is None:
            self.pages = (taken or {}) | self.pages
            return
        old, new = event.start // PAGE, event.new_start // PAGE
        count, new_count = event.length // PAGE, event.new_length // PAGE
        source = taken
        if source is None:
            source = {page: self.pages[page] for page in range(old, old + max(count, 1)) if page in self.pages}
        content = {page - old: value for page, value in source.items()}
        last = content.get(max(count - 1, 0))
        if last is not None:
            content |= dict.fromkeys(range(count, new_count), last)
        self.pages |= {new + index: value for index, value in content.items() if index < new_count}


def pages_of(start: int, length: int) -> range:
    return range(start // PAGE, (start + length) // PAGE)


STARTS, LENGTHS, PERMS = st.integers(1, PAGES), st.integers(1, 10), st.sampled_from(["rw-", "r--", "---"])


@st.composite
def remap_pairs(draw: st.DrawFn) -> list[VmaEvent]:
    """The enter and exit of one mremap, and what other threads map in between.

    When it moves, then never onto a part of the old range, as the kernel has it.
    """
    old, length, tid = draw(STARTS), draw(LENGTHS), draw(st.integers(1, 2))
    keep = draw(st.booleans())
    enter = remapping(old, old + length, tid, keep=keep)
    kind = draw(st.sampled_from(["fails", "in place", "moves"]))
    others = [mapped(start, start + size, 9) for start, size in draw(st.lists(st.tuples(STARTS, LENGTHS), max_size=2))]
    if kind == "fails":
        return [enter, *others, remapped(old, old + length, None, tid=tid, keep=keep)]
    if kind == "in place" and not keep:
        return [enter, remapped(old, old + length, old, old + draw(LENGTHS), tid)]
    new_length = length if keep else draw(LENGTHS)
    new = draw(STARTS.filter(lambda new: new + new_length <= old or new >= old + length))
    return [enter, *others, remapped(old, old + length, new, new + new_length, tid, keep=keep)]


def segment_at(page: int) -> int:
    """The number, and the stack, of the segment that is attached at this page."""
    return 100 + page


SEGMENT_EVENTS: st.SearchStrategy[list[VmaEvent]] = st.one_of(
    STARTS.map(lambda page: [attached(page, page + 5, segment_at(page), segment=segment_at(page))]),
    st.builds(lambda page, tid: [detaching(page, tid)], STARTS, st.integers(1, 2)),
    st.builds(lambda page, tid: [detaching(page, tid), Kept(tid)], STARTS, st.integers(1, 2)),
)
EVENTS: st.SearchStrategy[list[VmaEvent]] = st.one_of(
    st.builds(
        lambda start, length, stack, allocator, kind, perms: [
            mapped(start, start + length, stack, allocator=allocator, kind=kind, perms=perms + "p")
        ],
        STARTS,
        LENGTHS,
        st.integers(1, 3),
        st.booleans(),
        st.sampled_from(["mmap", "brk"]),
        PERMS,
    ),
    st.builds(lambda start, length, tid: [unmapped(start, start + length, tid)], STARTS, LENGTHS, st.integers(1, 2)),
    st.builds(
        lambda start, length, other, size: [
            unmapped(start, start + length, 1),
            mapped(other, other + size, 9),
            unmapped(other, other + 1, 2),
            Kept(1),
        ],
        STARTS,
        LENGTHS,
        STARTS,
        LENGTHS,
    ),
    st.builds(lambda start, length, perms: [protected(start, start + length, perms)], STARTS, LENGTHS, PERMS),
    remap_pairs(),
)


def pages(tracker: Tracker) -> dict[int, tuple[str, str]]:
    return {
        page: (range_.perms, name(tracker.origins[range_.origin]))
        for range_ in tracker.ranges
        for page in pages_of(range_.start, range_.size)
    }


WITHOUT_MOVES = st.one_of(
    SEGMENT_EVENTS,
    st.builds(lambda start, length, stack: [mapped(start, start + length, stack)], STARTS, LENGTHS, st.integers(1, 3)),
    st.builds(lambda start, length: [unmapped(start, start + length)], STARTS, LENGTHS),
    st.builds(lambda start, length, perms: [protected(start, start + length, perms)], STARTS, LENGTHS, PERMS),
)


@given(st.lists(WITHOUT_MOVES, max_size=25))
@settings(max_examples=300, deadline=None)
def test_segments_come_and_go_whole_or_in_part(events: list[list[VmaEvent]]) -> None:
    tracker, oracle = tracked(), Oracle()
    for event in (event for batch in events for event in batch):
        tracker.apply(event)
        oracle.apply(event)
        assert pages(tracker) == oracle.pages


@given(st.lists(st.tuples(STARTS, LENGTHS, PERMS), max_size=4), st.lists(EVENTS, max_size=25))
@settings(max_examples=300, deadline=None)
def test_every_page_is_whose_it_should_be(seeds: list[tuple[int, int, str]], events: list[list[VmaEvent]]) -> None:
    vmas: list[Vma] = []
    for start, length, perms in sorted(seeds):
        if not vmas or vmas[-1].end <= start * PAGE:
            vmas.append(vma(start, start + length, perms + "p"))
    tracker, oracle = tracked(*vmas), Oracle()
    oracle.pages = {
        page: (row.perms, f"seed {row.start // PAGE}") for row in vmas for page in pages_of(row.start, row.size)
    }
    for event in (event for batch in events for event in batch):
        tracker.apply(event)
        oracle.apply(event)
        assert pages(tracker) == oracle.pages


@given(st.lists(EVENTS | SEGMENT_EVENTS, max_size=15), st.lists(st.tuples(st.integers(0, 3), LENGTHS), max_size=6))
@settings(max_examples=100, deadline=None)
def test_after_a_resync_the_coverage_is_the_kernels(
    events: list[list[VmaEvent]], snapshot: list[tuple[int, int]]
) -> None:
    tracker = tracked(vma(0, 20), events=(event for batch in events for event in batch))
    before = pages(tracker)
    vmas: list[Vma] = []
    position = 0
    for gap, length in snapshot:
        vmas.append(vma(position + gap, position + gap + length))
        position += gap + length
    there = {page for row in vmas for page in pages_of(row.start, row.size)}
    off = tracker.resync(vmas)
    assert (off.added_bytes // PAGE, off.removed_bytes // PAGE) == (len(there - set(before)), len(set(before) - there))
    assert pages(tracker) == {page: ("rw-p", before[page][1] if page in before else "unknown") for page in there}
