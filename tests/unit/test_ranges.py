"""The range map against a model that keeps every page by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model.ranges import Range, RangeMap, Resync
from tracer.model.vma import Vma

PAGE = 4096
PAGES = 48
FILES = ((0, "00:00"), (7, "fe:00"), (8, "fe:00"), (7, "fe:01"))


@dataclass(frozen=True)
class Page:
    perms: str
    inode: int
    device: str
    offset: int
    origin: int


class Oracle:
    """A page table: each operation stated page by page, as the manual pages of the system calls do."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}

    def map(self, start: int, length: int, perms: str, inode: int, device: str, offset: int, origin: int) -> None:
        for index in range(length):
            self.pages[start + index] = Page(perms, inode, device, (offset + index) * PAGE if inode else 0, origin)

    def unmap(self, start: int, length: int) -> dict[int, Page]:
        return {page: self.pages.pop(page) for page in range(start, start + length) if page in self.pages}

    def protect(self, start: int, length: int, perms: str) -> None:
        for page in range(start, start + length):
            if page in self.pages:
                self.pages[page] = replace(self.pages[page], perms=perms + self.pages[page].perms[3])

    def move(self, old: int, old_length: int, new: int, new_length: int, keep_old: bool) -> None:
        if old_length == 0:
            if old in self.pages:
                self.grow(self.pages[old], new, new_length, 0)
            return
        last = self.pages.get(old + old_length - 1)
        taken = self.unmap(old, old_length)
        for page, content in taken.items():
            index = page - old
            if keep_old and new != old and index < new_length:
                self.pages[page] = content
        for page, content in taken.items():
            if page - old < new_length:
                self.pages[new + page - old] = content
        if last is not None and new_length > old_length:
            self.grow(last, new + old_length, new_length - old_length, PAGE)

    def grow(self, like: Page, start: int, length: int, ahead: int) -> None:
        for index in range(length):
            offset = like.offset + ahead + index * PAGE if like.inode else 0
            self.pages[start + index] = replace(like, offset=offset)


def pages_of(ranges: list[Range]) -> dict[int, Page]:
    return {
        (address // PAGE): Page(
            row.perms, row.inode, row.device, row.offset + address - row.start if row.inode else row.offset, row.origin
        )
        for row in ranges
        for address in range(row.start, row.end, PAGE)
    }


def vma(start: int, end: int, perms: str = "rw-p", offset: int = 0, device: str = "00:00", inode: int = 0) -> Vma:
    return Vma(start * PAGE, end * PAGE, perms, offset * PAGE, device, inode, b"")


PERMS = st.sampled_from(["r--", "rw-", "---"])
STARTS = st.integers(0, PAGES - 1)
LENGTHS = st.integers(1, 12)
MAPS = st.tuples(
    st.just("map"),
    STARTS,
    LENGTHS,
    st.sampled_from(["rw-p", "r--p", "rw-s"]),
    st.sampled_from(FILES),
    st.integers(0, 3),
)
OPERATIONS = st.lists(
    st.one_of(
        MAPS,
        MAPS,
        st.tuples(st.just("unmap"), STARTS, LENGTHS),
        st.tuples(st.just("failed unmap"), STARTS, LENGTHS),
        st.tuples(st.just("protect"), STARTS, LENGTHS, PERMS),
        st.tuples(st.just("move"), STARTS, st.integers(0, 12), STARTS, LENGTHS, st.booleans()),
    ),
    max_size=30,
)
SNAPSHOTS = st.lists(
    st.tuples(st.integers(0, 3), LENGTHS, st.sampled_from(["rw-p", "r--p"]), st.sampled_from(FILES)), max_size=8
)


def apply(model: RangeMap, oracle: Oracle, operation: tuple[object, ...]) -> None:
    match operation:
        case ("map", int(start), int(length), str(perms), (int(inode), str(device)), int(origin)):
            before = {page: oracle.pages[page] for page in range(start, start + length) if page in oracle.pages}
            offset = start if origin else 1  # in line with its neighbours, or not
            replaced = model.map(start * PAGE, length * PAGE - 1, perms, inode, device, offset * PAGE, origin)
            assert pages_of(replaced) == before
            oracle.map(start, length, perms, inode, device, offset, origin)
        case ("unmap", int(start), int(length)):
            assert pages_of(model.unmap(start * PAGE, length * PAGE)) == oracle.unmap(start, length)
        case ("failed unmap", int(start), int(length)):
            model.restore(model.unmap(start * PAGE, length * PAGE))
        case ("protect", int(start), int(length), str(perms)):
            model.protect(start * PAGE, length * PAGE, perms)
            oracle.protect(start, length, perms)
        case ("move", int(old), int(old_length), int(new), int(length), bool(keep_old)):
            in_place = old == new or not old_length
            if not in_place and old < new + length and new < old + old_length:
                return  # the kernel refuses ranges that overlap
            model.move(old * PAGE, old_length * PAGE, new * PAGE, length * PAGE, keep_old=keep_old)
            oracle.move(old, old_length, new, length, keep_old)
        case _:
            raise AssertionError(operation)


def check(model: RangeMap, oracle: Oracle) -> None:
    ranges = list(model)
    assert pages_of(ranges) == oracle.pages
    assert len(model) == len(ranges)
    for before, after in pairwise(ranges):
        assert before.end <= after.start
        assert not after.continues(before), "alike neighbours are merged"


def snapshot_of(gaps: list[tuple[int, int, str, tuple[int, str]]]) -> list[Vma]:
    vmas: list[Vma] = []
    position = 0
    for gap, length, perms, (inode, device) in gaps:
        position += gap
        vmas.append(vma(position, position + length, perms, position if inode else 0, device, inode))
        position += length
    return vmas


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_every_operation_as_page_by_page(operations: list[tuple[object, ...]]) -> None:
    model, oracle = RangeMap(), Oracle()
    for operation in operations:
        apply(model, oracle, operation)
        check(model, oracle)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, STARTS, STARTS)
def test_questions_as_page_by_page(operations: list[tuple[object, ...]], one: int, other: int) -> None:
    model, oracle = RangeMap(), Oracle()
    for operation in operations:
        apply(model, oracle, operation)
    start, end = min(one, other), max(one, other)
    within = {page: content for page, content in oracle.pages.items() if start <= page < end}
    assert pages_of(model.overlapping(start * PAGE, end * PAGE)) == within
    assert model.covered(start * PAGE, end * PAGE) == len(within) * PAGE
    origins = [content.origin for content in oracle.pages.values()]
    assert model.origins() == {origin: origins.count(origin) * PAGE for origin in set(origins)}


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, SNAPSHOTS)
def test_resync_takes_coverage_from_maps_and_keeps_origins(
    operations: list[tuple[object, ...]], gaps: list[tuple[int, int, str, tuple[int, str]]]
) -> None:
    model, oracle, vmas = RangeMap(), Oracle(), snapshot_of(gaps)
    for operation in operations:
        apply(model, oracle, operation)
    seeded = RangeMap()
    seeded.seed(vmas, origin=9)
    truth = pages_of(list(seeded))
    expected = Resync(
        added_bytes=len(truth.keys() - oracle.pages.keys()) * PAGE,
        removed_bytes=len(oracle.pages.keys() - truth.keys()) * PAGE,
    )
    assert model.difference(vmas) == expected
    assert model.resync(vmas, origin=9) == expected
    known = oracle.pages
    oracle.pages = {
        page: replace(content, origin=known[page].origin if page in known else 9) for page, content in truth.items()
    }
    check(model, oracle)
    assert model.difference(vmas) == Resync(0, 0)


def test_seeding_replaces_everything() -> None:
    model = RangeMap()
    model.map(0, PAGE, "rw-p", origin=5)
    model.seed([vma(4, 6), vma(6, 8), vma(8, 9, "r--p")])
    assert [(row.start // PAGE, row.end // PAGE, row.origin) for row in model] == [(4, 8, 0), (8, 9, 0)]


def test_a_torn_snapshot_is_cut_where_it_overlaps() -> None:
    model = RangeMap()
    vmas = [vma(0, 8), vma(6, 10, "r--p", 100, "fe:00", 3), vma(7, 9)]
    model.seed(vmas)
    assert [(row.start // PAGE, row.end // PAGE, row.offset // PAGE) for row in model] == [(0, 8, 0), (8, 10, 102)]
    assert model.difference(vmas) == Resync(0, 0)


def test_restoring_does_not_cover_what_came_meanwhile() -> None:
    model = RangeMap()
    model.map(0, 8 * PAGE, "rw-p", origin=1)
    removed = model.unmap(2 * PAGE, 4 * PAGE)
    model.map(3 * PAGE, PAGE, "rw-p", origin=2)
    model.restore(removed)
    assert [(row.start // PAGE, row.end // PAGE, row.origin) for row in model] == [(0, 3, 1), (3, 4, 2), (4, 8, 1)]


def test_file_offsets_follow_a_split() -> None:
    model = RangeMap()
    model.map(0, 8 * PAGE, "r--p", 7, "fe:00", 16 * PAGE, 1)
    model.unmap(3 * PAGE, PAGE)
    assert [(row.start // PAGE, row.offset // PAGE) for row in model] == [(0, 16), (4, 20)]


def test_a_heap_that_grows_by_one_origin_stays_one_range() -> None:
    model = RangeMap()
    for index in range(100):
        model.map(index * PAGE, PAGE, "rw-p", origin=3)
    assert [(row.start, row.end) for row in model] == [(0, 100 * PAGE)]


def test_nothing_is_mapped_by_an_empty_length() -> None:
    model = RangeMap()
    assert model.map(PAGE, 0, "rw-p") == [] == model.unmap(0, 0)
    assert len(model) == 0


def test_files_of_the_same_inode_number_on_two_devices_stay_apart() -> None:
    model = RangeMap()
    model.map(0, PAGE, "r--p", 7, "fe:00", 0, 1)
    model.map(PAGE, PAGE, "r--p", 7, "fe:01", PAGE, 1)
    assert [row.device for row in model] == ["fe:00", "fe:01"]


def test_the_range_at_an_address_is_the_whole_one() -> None:
    ranges = RangeMap()
    ranges.map(0x1000, 0x3000, "rw-p", origin=4)
    for address in (0x1000, 0x2345, 0x3FFF):
        found = ranges.at(address)
        assert found is not None and (found.start, found.end, found.origin) == (0x1000, 0x4000, 4)
    assert ranges.at(0xFFF) is None and ranges.at(0x4000) is None and RangeMap().at(0) is None
