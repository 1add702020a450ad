"""Which stacks of mapping system calls lead through a probed allocator."""

from __future__ import annotations

import pytest

from tests.unit.reports import vma
from tracer.heap.allocators import AllocatorImage, AllocShape, ProbeSite
from tracer.heap.code import AllocatorCode
from tracer.heap.discovery import FoundImage

LIBC, LIBRARY = 0x7F0000000000, 0x7F0000800000
APP = 0x555555555000


def image(name: str, path: str, start: int) -> FoundImage:
    malloc = ProbeSite(AllocShape.MALLOC, "malloc", 0x3000, 0x3000, 0x100, "entry")
    return FoundImage(
        path, f"/proc/1/map_files/{start:x}-{start + 0x10000:x}", AllocatorImage(name, (malloc,)), False, False
    )


@pytest.fixture
def code() -> AllocatorCode:
    found = AllocatorCode()
    mappings = [vma(LIBC, 0x10000, b"/libc.so.6", "r-xp"), vma(LIBRARY, 0x10000, b"/libjemalloc.so.2", "r-xp")]
    found.add(image("glibc malloc", "/libc.so.6", LIBC), mappings)
    found.add(image("jemalloc", "/libjemalloc.so.2", LIBRARY), mappings)
    return found


MMAP, MALLOC, OTHER = LIBC + 0x500, LIBC + 0x3010, LIBC + 0x9000


@pytest.mark.parametrize(
    ("ips", "by_brk", "leads"),
    [
        ([MMAP, MALLOC, APP], False, True),
        ([MMAP, OTHER, APP], False, False),
        ([MMAP, APP], False, False),
        ([LIBRARY + 0x9000, APP], False, True),
        ([MMAP, LIBC + 0x500, APP], True, False),
        ([MMAP, LIBC + 0x500, OTHER, APP], True, True),
        ([], True, False),
    ],
)
def test_leads_through(code: AllocatorCode, ips: list[int], by_brk: bool, leads: bool) -> None:
    assert code.leads_through(ips, by_brk=by_brk) is leads


def test_no_allocator() -> None:
    assert not AllocatorCode().leads_through([APP], by_brk=False)
