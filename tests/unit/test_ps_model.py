"""Sums, growth, order and the whole machine: whatever the processes are, nothing is lost in a group."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.procs import IOMEM, MEMINFO
from tracer.model.grouping import BYS, By, rows_of
from tracer.model.psview import PsView, ordered
from tracer.model.system import SystemMemory, system_memory
from tracer.model.usage import (
    NOTHING,
    SIZE_NAMES,
    Part,
    ProcessUsage,
    Row,
    Sizes,
    Survey,
    total,
    total_row,
    with_growth,
)
from tracer.procfs.meminfo import parse_iomem, parse_meminfo

KIB = 1024
amounts = st.none() | st.integers(0, 1 << 40)
sizes = st.builds(Sizes, *(amounts for _ in SIZE_NAMES))
known_sizes = st.builds(Sizes, *(st.integers(0, 1 << 40) for _ in SIZE_NAMES))
names = st.sampled_from(["a", "b", "[heap]", "", "\udcff"])
processes = st.lists(
    st.builds(
        ProcessUsage,
        pid=st.integers(1, 1 << 22),
        user=names,
        uid=st.integers(0, 3),
        name=names,
        command=names,
        sizes=sizes,
        threads=st.integers(1, 9),
        program=names,
        cgroup=names,
        refusal=st.none() | st.just("no permission"),
        parts=st.lists(st.builds(Part, names, st.integers(1, 9), known_sizes), max_size=4).map(tuple),
    ),
    max_size=8,
    unique_by=lambda process: process.pid,
)


def sized(rss: int, pss: int | None = None, **others: int) -> Sizes:
    return Sizes(rss=rss, pss=pss, uss=pss, **others)


@given(processes, st.sampled_from([by for by in BYS if by not in ("mapping", "class")]))
def test_groups_add_up_to_the_processes(found: list[ProcessUsage], by: By) -> None:
    rows = rows_of(found, by)
    assert total(row.sizes for row in rows)[0] == total(process.sizes for process in found)[0]
    assert sum(row.pids for row in rows) == len(found)
    assert sum(row.unreadable for row in rows) == sum(process.refusal is not None for process in found)
    assert len({row.key for row in rows}) == len(rows)


@given(processes, st.sampled_from(["mapping", "class"]))
def test_parts_add_up_to_the_processes(found: list[ProcessUsage], by: By) -> None:
    rows = rows_of(found, by)
    parts = [part for process in found for part in process.parts]
    assert total(row.sizes for row in rows)[0] == total(part.sizes for part in parts)[0]
    assert sum(row.maps or 0 for row in rows) == sum(part.count for part in parts)


@given(st.lists(sizes, max_size=5))
def test_a_sum_says_what_it_lacks(parts: list[Sizes]) -> None:
    found, partial = total(parts)
    for name in SIZE_NAMES:
        values = [getattr(part, name) for part in parts]
        known = [value for value in values if value is not None]
        assert getattr(found, name) == (sum(known) if known or not values else None)
        assert (name in partial) == (bool(known) and len(known) < len(values))


@given(processes, processes, st.sampled_from(BYS))
def test_what_was_and_what_grew_is_what_is(before: list[ProcessUsage], after: list[ProcessUsage], by: By) -> None:
    then = rows_of(before, by)
    earlier = {row.key: row.sizes for row in then}
    for row in with_growth(rows_of(after, by), then):
        was = earlier.get(row.key, NOTHING)
        assert row.is_new == (row.key not in earlier) and row.growth is not None
        for name in SIZE_NAMES:
            grown = getattr(row.growth, name)
            assert grown is None or getattr(was, name) + grown == getattr(row.sizes, name)


def test_a_group_that_lacked_a_member_did_not_grow_by_it() -> None:
    then = Row("root", "root", sized(10, 5), partial=frozenset({"pss", "uss"}))
    now = Row("root", "root", sized(12, 9))
    (row,) = with_growth([now], [then])
    assert row.growth is not None and (row.growth.rss, row.growth.pss, row.growth.uss) == (2, None, None)


def test_a_pid_used_again_is_another_process() -> None:
    old = ProcessUsage(7, "ann", 1, "x", "x", sized(100, 50), start=1)
    new = replace(old, start=2, sizes=sized(30, 20))
    (row,) = with_growth(rows_of([new], "process"), rows_of([old], "process"))
    assert row.is_new and row.growth is not None and row.growth.pss == 20


def test_the_total_sums_growth_and_what_is_partial() -> None:
    one = Row(1, "a", sized(10, 5), growth=sized(1, 2), maps=3, threads=2)
    other = Row(2, "b", sized(20), growth=sized(-4), maps=None, threads=None, unreadable=1)
    row = total_row([one, other])
    assert (row.sizes.rss, row.sizes.pss, row.maps, row.threads, row.unreadable, row.pids) == (30, 5, 3, 2, 1, 2)
    assert row.growth is not None and (row.growth.rss, row.growth.pss) == (-3, 2)
    assert row.partial == {"pss", "uss"}
    assert total_row([]).growth is None and total_row([]).sizes == NOTHING


class TestOrder:
    ROWS = tuple(Row(i, label, sized(rss)) for i, (label, rss) in enumerate([("b", 5), ("a", 9), ("c", 1), ("d", 5)]))

    def labels(self, **options: object) -> str:
        return "".join(row.label for row in ordered(self.ROWS, lambda row: row.sizes.rss, **options))  # type: ignore[arg-type]

    def test_the_largest_stands_last_next_to_the_prompt(self) -> None:
        assert self.labels() == "cbda"

    def test_reversed(self) -> None:
        assert self.labels(reverse=True) == "adbc"

    def test_the_top_is_the_largest_in_either_order(self) -> None:
        assert (self.labels(top=2), self.labels(top=2, reverse=True), self.labels(top=9)) == ("da", "ad", "cbda")

    def test_what_has_no_value_comes_first(self) -> None:
        rows = [Row(1, "known", sized(1, 1)), Row(2, "unknown", sized(9))]
        assert [row.label for row in ordered(rows, lambda row: row.sizes.pss)] == ["unknown", "known"]

    @given(st.lists(amounts, max_size=6), st.permutations(range(6)))
    def test_does_not_depend_on_the_order_of_arrival(self, values: list[int | None], permutation: list[int]) -> None:
        rows = [Row(i, str(i), Sizes(pss=value)) for i, value in enumerate(values)]
        shuffled = [rows[i] for i in permutation if i < len(rows)]
        assert ordered(rows, lambda row: row.sizes.pss) == ordered(shuffled, lambda row: row.sizes.pss)

    def test_a_view_says_how_much_it_leaves_out(self) -> None:
        view = PsView("process", datetime.now(UTC), self.ROWS, total_row(self.ROWS), Survey(()))
        cut = view.arranged(lambda row: row.sizes.rss, top=3)
        assert (len(cut.rows), cut.omitted, cut.total.sizes.rss) == (3, 1, 20)


class TestWholeMachine:
    def memory(self, meminfo: bytes = MEMINFO, iomem: bytes = IOMEM) -> SystemMemory:
        found = system_memory(parse_meminfo(meminfo), *parse_iomem(iomem))
        assert found is not None
        return found

    def used(self, name: str, **options: bytes) -> int | None:
        return next(area.used for area in self.memory(**options).areas if area.name == name)

    def test_the_areas_are_what_meminfo_says(self) -> None:
        areas = {area.name: (area.used, area.cache) for area in self.memory().inside}
        assert areas == {
            "kernel": ((16_000_000 - 4_000_000 - 6_500_000 - 3_700_000 - 1_048_576) * KIB, 600_000 * KIB),
            "page cache": (3_700_000 * KIB, 3_400_000 * KIB),
            "userspace": (6_500_000 * KIB, 1_500_000 * KIB),
            "huge page pool": (1_048_576 * KIB, 0),
            "free": (4_000_000 * KIB, 4_000_000 * KIB),
        }

    def test_what_smem_calls_kernel_dynamic_memory(self) -> None:
        """It takes the page cache and the pool of huge pages for the kernel's."""
        smems = 16_000_000 - 4_000_000 - (5_000_000 + 1_500_000)
        ours = sum(self.used(name) or 0 for name in ("kernel", "page cache", "huge page pool"))
        assert ours == smems * KIB

    @given(st.dictionaries(st.sampled_from(sorted(parse_meminfo(MEMINFO))), st.integers(0, 1 << 50)))
    def test_the_areas_always_add_up(self, changed: dict[str, int]) -> None:
        fields = parse_meminfo(MEMINFO) | changed
        found = system_memory(fields, None, None)
        assert found is not None and sum(area.used or 0 for area in found.inside) == fields["MemTotal"]
        for area in found.inside:
            if area.used is not None and area.used >= 0:
                assert area.noncache is not None and area.noncache >= 0, area

    def test_what_only_root_may_see_is_not_known(self) -> None:
        hidden = b"00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n"
        assert (self.used("reserved at boot", iomem=hidden), self.used("kernel image", iomem=hidden)) == (None, None)
        assert self.memory(iomem=hidden).areas[0].noncache is None

    def test_the_machine_beyond_memtotal(self) -> None:
        ram, image = parse_iomem(IOMEM)
        assert ram == 0x9F000 + 0x3FFF00000 and image is not None
        assert self.used("kernel image") == image
        assert self.used("reserved at boot") == ram - 16_000_000 * KIB - image

    def test_swap_and_available(self) -> None:
        found = self.memory()
        assert (found.swap_total, found.swap_used, found.available) == (2_000_000 * KIB, 500_000 * KIB, 9_000_000 * KIB)

    def test_shared_memory_is_no_cache_wherever_it_lies(self) -> None:
        found = self.memory(MEMINFO.replace(b"Shmem:            300000", b"Shmem:           4000000"))
        areas = {area.name: area.cache for area in found.inside}
        assert (areas["page cache"], areas["userspace"]) == (0, (1_500_000 - 300_000) * KIB)

    @pytest.mark.parametrize("field", [b"MemTotal", b"MemFree", b"AnonPages", b"Mapped", b"Cached"])
    def test_without_the_fields_it_rests_on_there_is_no_view(self, field: bytes) -> None:
        assert system_memory(parse_meminfo(MEMINFO.replace(field, b"Gone")), None, None) is None

    @given(st.binary(max_size=200))
    def test_any_bytes_are_no_error(self, data: bytes) -> None:
        parse_meminfo(data)
        parse_iomem(data)


def test_sizes_are_all_there() -> None:
    assert {field.name for field in dataclasses.fields(Sizes)} == set(SIZE_NAMES)
