"""smaps: the fast way and the line-by-line way must agree, on every quirk of the format."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.procfs.smaps import estimate_smaps_seconds, parse_smaps, read_smaps

NAMES: tuple[str, ...] = (
    *("Size", "KernelPageSize", "MMUPageSize", "Rss", "Pss", "Pss_Dirty", "Shared_Clean", "Shared_Dirty"),
    *("Private_Clean", "Private_Dirty", "Referenced", "Anonymous", "KSM", "LazyFree", "AnonHugePages"),
    *("Shared_Hugetlb", "Private_Hugetlb", "Swap", "SwapPss", "Locked"),
)


def header(index: int = 0, path: bytes = b"") -> bytes:
    start = 0x7F0000000000 + index * 0x10000
    return b"%x-%x rw-p 00000000 00:00 0 %s\n" % (start, start + 0x8000, path and b"                 " + path)


def line(name: str, kib: int) -> bytes:
    return f"{name + ':':<16}{kib:>8} kB\n".encode()


def body(sizes: dict[str, int], names: tuple[str, ...] = NAMES) -> bytes:
    return b"".join(line(name, sizes.get(name, 0)) for name in names) + b"THPeligible:           0\n"


def block(index: int = 0, path: bytes = b"", flags: bytes = b"rd wr mr mw me ac ", **sizes: int) -> bytes:
    return header(index, path) + body(sizes) + b"VmFlags: " + flags + b"\n"


def test_every_size_lands_in_its_field() -> None:
    sizes = {"Rss": 1, "Pss": 2, "Shared_Clean": 3, "Shared_Dirty": 4, "Private_Clean": 5, "Private_Dirty": 6}
    (usage,) = parse_smaps(block(0, b"[heap]", b"rd wr ", **sizes, Anonymous=7, Swap=8))
    assert (usage.rss, usage.pss, usage.shared_clean, usage.shared_dirty) == (1024, 2048, 3072, 4096)
    assert (usage.private_clean, usage.private_dirty, usage.anonymous, usage.swap) == (5120, 6144, 7168, 8192)
    assert usage.vma.path == b"[heap]"
    assert usage.flags == ("rd", "wr")


@pytest.mark.parametrize(
    "path",
    [b"/Rss: 5 kB", b"/VmFlags: rd", b"/x kB", b"/a\\012Rss: 7 kB", b"/\xff\xfe", b"/x (deleted)", b"/" + b"y" * 4095],
)
def test_names_that_look_like_fields(path: bytes) -> None:
    usages = parse_smaps(block(0, Rss=4) + block(1, path, Rss=8) + block(2, Rss=12))
    assert [usage.rss for usage in usages] == [4096, 8192, 12288]
    assert usages[1].vma.path == path


def test_each_block_has_its_own_flags() -> None:
    usages = parse_smaps(block(0, flags=b"rd nh ") + block(1, flags=b"rd ?? zz ") + block(2, flags=b""))
    assert [usage.flags for usage in usages] == [("rd", "nh"), ("rd", "??", "zz"), ()]


def test_numbers_of_nine_digits_shift_the_line() -> None:
    usages = parse_smaps(block(0, Rss=4, Swap=1) + block(1, Rss=123456789, Swap=2) + block(2, Rss=8, Swap=3))
    assert [usage.rss >> 10 for usage in usages] == [4, 123456789, 8]
    assert [usage.swap >> 10 for usage in usages] == [1, 2, 3]


def test_a_first_block_with_a_wide_number() -> None:
    usages = parse_smaps(block(0, Rss=123456789, Swap=2) + block(1, Rss=4, Swap=1))
    assert [(usage.rss >> 10, usage.swap >> 10) for usage in usages] == [(123456789, 2), (4, 1)]


@pytest.mark.parametrize("extra", [b"ProtectionKey:         7\n", b"Novelty:         999 kB\n", b"Odd: a b c\n"])
def test_fields_of_other_kernels(extra: bytes) -> None:
    text = b"".join(block(index, Rss=index * 4).replace(b"THPeligible", extra + b"THPeligible") for index in range(3))
    assert [usage.rss >> 10 for usage in parse_smaps(text)] == [0, 4, 8]


def test_a_field_that_only_some_blocks_have() -> None:
    middle = block(1, Rss=8, Swap=1).replace(b"Rss:", b"Novelty:         999 kB\nRss:")
    usages = parse_smaps(block(0, Rss=4) + middle + block(2, Rss=12))
    assert [(usage.rss >> 10, usage.swap >> 10) for usage in usages] == [(4, 0), (8, 1), (12, 0)]


def test_a_field_behind_the_flags() -> None:
    text = block(0, Rss=4) + b"Novelty: 9 kB\n" + block(1, Rss=8)
    assert [usage.rss >> 10 for usage in parse_smaps(text)] == [4, 8]


def test_a_kernel_without_some_fields() -> None:
    (usage,) = parse_smaps(header() + line("Rss", 4) + line("Swap", 8) + b"VmFlags: rd\n")
    assert (usage.rss, usage.swap, usage.pss) == (4096, 8192, 0)


def test_a_missing_newline_and_a_missing_last_line() -> None:
    whole = block(0, Rss=4) + block(1, Rss=8)
    assert parse_smaps(whole.removesuffix(b"\n")) == parse_smaps(whole)
    without_flags = parse_smaps(whole[: whole.rindex(b"VmFlags")])
    assert [usage.rss >> 10 for usage in without_flags] == [4, 8]
    assert without_flags[1].flags == ()


def test_nothing_at_all() -> None:
    assert parse_smaps(b"") == ()


@given(st.integers(0, len(block(0, Rss=4)) * 2))
def test_a_file_cut_anywhere_is_no_error(length: int) -> None:
    whole = block(0, Rss=4) + block(1, Rss=8)
    usages = parse_smaps(whole[:length])
    assert [usage.vma for usage in usages] == [usage.vma for usage in parse_smaps(whole)][: len(usages)]


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 2 * 10**9)), max_size=5))
def test_against_a_simple_reading(blocks: list[dict[str, int]]) -> None:
    text = b"".join(block(index, b"", b"rd ", **sizes) for index, sizes in enumerate(blocks))
    usages = parse_smaps(text)
    for field in ("Rss", "Pss", "Anonymous", "Private_Clean", "Private_Dirty", "Shared_Clean", "Shared_Dirty", "Swap"):
        expected = [int(kib) * 1024 for kib in re.findall(rf"^{field}: +(\d+) kB$".encode(), text, re.MULTILINE)]
        assert [getattr(usage, field.lower()) for usage in usages] == expected


def test_own_smaps_keep_the_kernels_invariants() -> None:
    usages = read_smaps(os.getpid())
    assert any(usage.anonymous for usage in usages)
    for usage in usages:
        clean_and_dirty = usage.private_clean + usage.private_dirty + usage.shared_clean + usage.shared_dirty
        assert clean_and_dirty == usage.rss <= usage.vma.size
        assert usage.pss <= usage.rss
        assert "rd" in usage.flags or usage.vma.perms[0] == "-"


def test_the_estimate_counts_vmas_and_resident_pages() -> None:
    assert estimate_smaps_seconds(0, 4 << 30) == pytest.approx(0.12)
    assert estimate_smaps_seconds(60_000, 0) == pytest.approx(0.198)
