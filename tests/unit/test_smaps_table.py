"""smaps as columns: the quick reading must be that of parse_blocks, line by line, for every form of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.proc_files import NAMES, block, maps_line, size_line
from tracer.model.vma import Vma
from tracer.procfs import block_layout
from tracer.procfs.files import read_file, read_parts
from tracer.procfs.maps import parse_maps
from tracer.procfs.smaps_fields import SmapsBlock, SmapsFields, is_summable, parse_blocks, parse_fields
from tracer.procfs.smaps_table import parse_maps_table, parse_smaps_table
from tracer.procfs.vma_table import VmaTable

BASE = 0x7F0000000000
STEP = 0x10000


def nth(index: int, **options: object) -> bytes:
    start = BASE + index * STEP
    return block(start, start + 0x8000, **options)  # type: ignore[arg-type]


def rows(table: VmaTable) -> list[SmapsBlock]:
    return [table.block(row) for row in range(len(table))]


def agrees(data: bytes, *sizes: int) -> list[SmapsBlock]:
    """The blocks, which must be the same by both readings, and whatever the parts that the file comes in."""
    slowly = list(parse_blocks(data))
    for size in (len(data) or 1, 4096, 97, *sizes):
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        assert rows(parse_smaps_table(parts)) == slowly
    assert rows(parse_smaps_table(data)) == slowly
    return slowly


def test_every_field_is_kept_in_bytes() -> None:
    (row,) = agrees(nth(0, path=b"[heap]", Rss=5, Private_Dirty=4, Swap=3, flags=b"rd wr "))
    assert row.vma == Vma(BASE, BASE + 0x8000, "rw-p", 0, "00:00", 0, b"[heap]")
    assert list(row.fields.sizes) == ["Size", *NAMES]
    assert (row.fields.sizes["Rss"], row.fields.sizes["Swap"], row.fields.sizes["Size"]) == (5120, 3072, 0x8000)
    assert row.fields.others == {"THPeligible": 0}
    assert row.flags == ("rd", "wr")


@pytest.mark.parametrize(
    ("extra", "sizes", "others"),
    [
        (b"ProtectionKey:         7\n", {}, {"ProtectionKey": 7}),
        (b"Novelty:             999 kB\n", {"Novelty": 999 << 10}, {}),
        (b"Mode:            eager 7 x\n", {}, {"Mode": "eager 7 x"}),
        (b"Empty:\n", {}, {"Empty": ""}),
        (b"Huge: 99999999999999999999999 kB\n", {}, {"Huge": "99999999999999999999999 kB"}),
    ],
)
def test_fields_of_other_kernels(extra: bytes, sizes: dict[str, int], others: dict[str, object]) -> None:
    found = agrees(b"".join(nth(index, extra=extra, Rss=index) for index in range(3)))
    for row in found:
        assert {name: size for name, size in row.fields.sizes.items() if name not in ("Size", *NAMES)} == sizes
        assert {name: value for name, value in row.fields.others.items() if name != "THPeligible"} == others


def test_a_field_that_only_some_blocks_have() -> None:
    table = parse_smaps_table(nth(0, Rss=1) + nth(1, Rss=2, extra=b"Novelty: 9 kB\n") + nth(2, Rss=3))
    assert table.sizes("Novelty").expand() == [None, 9 << 10, None]
    assert table.sizes("Rss").expand() == [1024, 2048, 3072]
    assert table.sum("Novelty") == 9 << 10
    assert "Novelty" in table.size_names


def test_a_field_that_is_a_size_in_some_blocks_only() -> None:
    data = (
        nth(0, extra=b"Odd: 7\n") + nth(1, extra=b"Odd: 7\n") + nth(2, extra=b"Odd: 9 kB\n") + nth(3, extra=b"Odd: x\n")
    )
    table = parse_smaps_table(data)
    assert table.sizes("Odd").expand() == [None, None, 9 << 10, None]
    assert table.sum("Odd") == 9 << 10 and "Odd" not in table.other_names


def test_a_field_behind_the_flags_belongs_to_the_block_before() -> None:
    found = agrees(nth(0, Rss=1) + b"Novelty: 9 kB\n" + nth(1, Rss=2))
    assert [row.fields.sizes.get("Novelty") for row in found] == [9 << 10, None]
    assert [row.flags for row in found] == [("rd", "wr", "mr", "mw", "me", "ac")] * 2


def test_blocks_without_flags() -> None:
    whole = nth(0, Rss=1) + nth(1, Rss=2)
    found = agrees(whole.replace(b"VmFlags: rd wr mr mw me ac \n", b""))
    assert [row.fields.sizes["Rss"] for row in found] == [1024, 2048]
    assert [row.flags for row in found] == [(), ()]
    assert len(agrees(nth(0) + nth(1).replace(b"VmFlags: rd wr mr mw me ac \n", b"") + nth(2))) == 3


def test_unknown_flags_and_none() -> None:
    found = agrees(nth(0, flags=b"rd ?? zz ") + nth(1, flags=b""))
    assert [row.flags for row in found] == [("rd", "??", "zz"), ()]


def test_numbers_of_nine_and_more_digits() -> None:
    found = agrees(nth(0, Rss=4) + nth(1, Rss=123456789, Swap=2) + nth(2, Rss=9876543210) + nth(3, Rss=8))
    assert [row.fields.sizes["Rss"] >> 10 for row in found] == [4, 123456789, 9876543210, 8]


def test_a_first_block_of_another_form_than_all_others() -> None:
    data = nth(0, Rss=123456789) + b"".join(nth(index, Rss=index) for index in range(1, 400))
    assert [row.fields.sizes["Rss"] >> 10 for row in agrees(data)][1:] == list(range(1, 400))


@pytest.mark.parametrize(
    "path",
    [
        *(b"/Rss: 5 kB", b"/VmFlags: rd", b"/ends 12 kB", b"/a\\012Rss: 7 kB", b"/\xff\xfe", b"/x (deleted)"),
        *(b"/" + b"y" * 4095, b"[anon: glibc: malloc]", b"/back\\slash", b"/tab\there", b"/trailing "),
    ],
)
def test_names_that_look_like_fields(path: bytes) -> None:
    found = agrees(nth(0, Rss=1) + nth(1, path=path, inode=7, Rss=2) + nth(2, Rss=3))
    assert [row.fields.sizes["Rss"] for row in found] == [1024, 2048, 3072]
    assert found[1].vma.path == path


def test_a_file_without_a_last_line() -> None:
    whole = nth(0, Rss=1) + nth(1, Rss=2)
    assert agrees(whole.removesuffix(b"\n")) == agrees(whole)
    assert agrees(whole[: whole.rindex(b"VmFlags")])[1].flags == ()


def test_a_last_block_without_fields_is_left_out() -> None:
    assert len(parse_smaps_table(nth(0, Rss=1) + maps_line(BASE + STEP, BASE + 2 * STEP))) == 1


def test_overlap_shows() -> None:
    assert not parse_smaps_table(nth(0) + nth(1)).overlapping()
    assert parse_smaps_table(nth(1) + nth(0)).overlapping()
    assert parse_maps_table(maps_line(0x1000, 0x3000) + maps_line(0x2000, 0x4000)).overlapping()


def test_addresses_of_any_length() -> None:
    data = block(0x400000, 0x401000) + nth(0) + block(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, path=b"[vsyscall]")
    found = agrees(data)
    assert [row.vma.start for row in found] == [0x400000, BASE, 0xFFFFFFFFFF600000]


def test_nothing_at_all() -> None:
    assert len(parse_smaps_table(b"")) == 0
    assert len(parse_maps_table(b"")) == 0


blocks = st.builds(
    lambda index, extra, flags, path, sizes: nth(index, extra=extra, flags=flags, path=path, inode=1, **sizes),
    st.integers(0, 50),
    st.sampled_from([b"", b"", b"", b"ProtectionKey:         0\n", b"New:                 7 kB\n", b"Odd: a b\n"]),
    st.sampled_from([b"rd wr ", b"rd ", b"", b"?? "]),
    st.binary(max_size=20).map(lambda text: b"/" + text.replace(b"\n", b"\\012")),
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3 * 10**8), max_size=4),
)


@given(st.lists(blocks, max_size=12), st.integers(1, 3000))
def test_the_quick_reading_is_the_slow_one(parts: list[bytes], size: int) -> None:
    agrees(b"".join(parts), size)


@given(st.lists(blocks, min_size=1, max_size=4), st.data())
def test_a_file_cut_anywhere_or_changed_anywhere_is_no_error(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    table = parse_smaps_table(whole[: data.draw(st.integers(0, len(whole)))])
    assert len(table) <= len(parts)
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + 1 :]
    table = parse_smaps_table(changed)
    for name in (*table.size_names, *table.other_names):
        assert len(table.field(name).expand()) == len(table)
    assert len(table.flags) == len(table.vmas()) == len(table)


@given(st.binary(max_size=400))
def test_bytes_of_any_kind_are_no_error(data: bytes) -> None:
    assert len(parse_smaps_table(data)) <= len(data)
    assert len(parse_maps_table(data)) <= len(data)


def test_maps_as_a_table_is_maps() -> None:
    data = read_file(os.getpid(), "maps")
    assert tuple(parse_maps_table(data).vmas()) == parse_maps(data)
    broken = data + b"7f00-7f01 rw-p\n" + maps_line(0x7F0000000000, 0x7F0000001000)
    assert tuple(parse_maps_table(broken).vmas()) == parse_maps(broken)


def test_own_smaps_by_both_readings() -> None:
    data = read_file(os.getpid(), "smaps")
    assert len(agrees(data)) > 20
    assert b"".join(read_parts(os.getpid(), "smaps", 4096)).count(b"VmFlags") == data.count(b"VmFlags")


def test_page_sizes_are_no_sum() -> None:
    table = parse_smaps_table(nth(0, Rss=1) + nth(1, Rss=2))
    assert table.sums()["Rss"] == 3072
    assert not {"KernelPageSize", "MMUPageSize", "THPeligible"} & set(table.sums())
    assert is_summable("Novelty") and not is_summable("FolioPageSize")


def test_taken_rows_keep_all_that_is_theirs() -> None:
    table = parse_smaps_table(b"".join(nth(index, Rss=index, path=b"/%d" % index, inode=1) for index in range(5)))
    taken = table.take([3, 1])
    assert rows(taken) == [table.block(3), table.block(1)]
    assert taken.sum("Rss") == 4 << 10


def test_rollup_has_one_block() -> None:
    fields = parse_fields(b"1000-2000 ---p 00000000 00:00 0          [rollup]\n" + size_line("Pss_Anon", 7))
    assert fields == SmapsFields({"Pss_Anon": 7 << 10}, {})
    assert fields.get("Pss_Anon") == 7 << 10 and fields.get("Pss_Shmem") is None


def file_of(count: int) -> Iterator[bytes]:
    for index in range(count):
        yield nth(index, Rss=index % 7, Pss=index, path=b"/lib%d" % (index % 3) if index % 2 else b"", inode=index % 2)


def test_sixty_thousand_vmas() -> None:
    table = parse_smaps_table(file_of(60_000))
    assert len(table) == 60_000 and not table.overlapping()
    assert table.sum("Pss") == sum(range(60_000)) << 10
    assert table.block(59_999) == next(parse_blocks(nth(59_999, Rss=59_999 % 7, Pss=59_999, path=b"/lib2", inode=1)))


def test_a_usual_file_is_parsed_by_the_places_of_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line is for what no kernel writes: it takes five times as long."""
    parsed: list[bytes] = []

    def counted(body: bytes) -> SmapsFields:
        parsed.append(body)
        return parse_fields(body)

    monkeypatch.setattr(block_layout, "parse_fields", counted)
    table = parse_smaps_table(Path("/proc/self/smaps").read_bytes())
    assert "Rss" in table.size_names and all(table.sizes(name).values for name in table.size_names)
    assert len(parsed) == 1, "the block from which the names are learnt"
