"""Residency by pagemap equals residency by smaps, by the ioctl and by the entries alike."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tracer.errors import TargetError
from tracer.model.vma import RssCounters, Vma
from tracer.procfs.maps import read_maps
from tracer.procfs.memory import MemoryReader
from tracer.procfs.pagemap import Residency, snapshot_from_pagemap
from tracer.procfs.smaps import read_smaps

PAGE = mmap.PAGESIZE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

# Holds memory of many kinds, partly touched, then waits: written, only read (the page of zeros), large and sparse,
# shared, a file read and partly copied on write, and dropped again.
QUIET = """
import mmap, sys
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
keep = [mmap.mmap(-1, size, flags) for size, flags in [(9 << 20, private), (3 << 30, private | 0x4000)]]
for position in range(0, 9 << 20, 3 * 4096):
    keep[0][position] = 1
for position in range(0, 3 << 30, 777 << 20):
    keep[1][position] = 1
reader = mmap.mmap(-1, 1 << 20, private)
reader.find(b"x")
shared = mmap.mmap(-1, 1 << 20)
shared[:8192] = bytes(8192)
source = open(sys.executable, "rb")
file = mmap.mmap(source.fileno(), 1 << 20, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
file.find(b"no such text")
file[5 * 4096] = 1
dropped = mmap.mmap(-1, 1 << 20, private)
dropped.write(bytes(1 << 20))
dropped.madvise(mmap.MADV_DONTNEED, 0, 1 << 19)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def quiet() -> Iterator[int]:
    arguments = [sys.executable, "-c", QUIET]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


@pytest.fixture(params=[True, False], ids=["ioctl", "entries"])
def residency(request: pytest.FixtureRequest) -> Iterator[Residency]:
    with Residency(os.getpid(), use_scan=request.param) as residency:
        if request.param and not residency.has_scan:
            pytest.skip("this kernel has no PAGEMAP_SCAN (6.7)")
        if not request.param and os.geteuid():
            pytest.skip("without root, the entries do not tell the page of zeros")
        yield residency


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_runs_of_touched_pages(residency: Residency) -> None:
    memory = mmap.mmap(-1, 16 * PAGE, PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    start = address_of(memory)
    for page in (1, 2, 3, 7, 15):
        memory[page * PAGE] = 1
    runs = [
        ((low - start) // PAGE, (high - start) // PAGE)
        for low, high in residency.resident_runs(start, start + 16 * PAGE)
    ]
    assert runs == [(1, 4), (7, 8), (15, 16)]
    assert residency.resident_bytes(start, start + 16 * PAGE) == 5 * PAGE
    assert residency.resident_runs(start + 2 * PAGE, start + 7 * PAGE) == [(start + 2 * PAGE, start + 4 * PAGE)]


def test_the_page_of_zeros_is_not_resident(residency: Residency) -> None:
    memory = mmap.mmap(-1, 4 * PAGE, PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.find(b"x")
    assert residency.resident_bytes(address_of(memory), address_of(memory) + 4 * PAGE) == 0


def test_more_than_one_call_takes(residency: Residency) -> None:
    size = 20 << 20
    memory = mmap.mmap(-1, size, PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for position in range(0, size, 2 * PAGE):  # more regions than fit the vector of one call
        memory[position] = 1
    start = address_of(memory)
    assert residency.resident_bytes(start, start + size) == size // 2
    assert len(residency.resident_runs(start, start + size)) == size // (2 * PAGE)
    memory.write(bytes(size))
    assert residency.resident_runs(start, start + size) == [(start, start + size)]


def test_more_regions_than_the_kernel_buffers(residency: Residency) -> None:
    memory = mmap.mmap(-1, 9 << 20, PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for position in range(0, len(memory), 3 * PAGE):  # 768: the kernel's own buffer takes 512
        memory[position] = 1
    start = address_of(memory)
    assert residency.resident_bytes(start, start + len(memory)) == 768 * PAGE


def test_an_unaligned_range_is_resident_where_its_pages_are(residency: Residency) -> None:
    memory = mmap.mmap(-1, 4 * PAGE, PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[PAGE] = memory[2 * PAGE] = 1
    start = address_of(memory)
    assert residency.is_resident(start + 2 * PAGE - 8, start + 2 * PAGE + 8)
    assert not residency.is_resident(start + 3 * PAGE - 8, start + 3 * PAGE + 8)


def test_the_kernels_half_of_the_addresses_has_nothing(residency: Residency) -> None:
    assert residency.resident_bytes(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000) == 0


@pytest.mark.parametrize("use_scan", [True, False])
def test_every_vma_as_in_smaps(quiet: int, use_scan: bool) -> None:
    if not use_scan and os.geteuid():
        pytest.skip("without root, the entries do not tell the page of zeros")
    expected = [(usage.vma, usage.rss, usage.anonymous, usage.swap) for usage in read_smaps(quiet)]
    with Residency(quiet, use_scan=use_scan) as residency:
        usages = residency.usages(read_maps(quiet))
    assert [(usage.vma, usage.rss, usage.anonymous, usage.swap) for usage in usages] == expected
    assert any(usage.vma.is_file and 0 < usage.anonymous < usage.rss for usage in usages)


def test_overlapping_vmas_of_a_torn_snapshot(quiet: int) -> None:
    usages = snapshot_from_pagemap(quiet, read_maps(quiet), RssCounters(), 0).usages
    largest = max(usages, key=lambda usage: usage.rss)
    vma = largest.vma
    cut = Vma(vma.start + PAGE, vma.end, vma.perms, 0, "00:00", vma.inode, vma.path)
    vmas = [vma, cut, vma]
    assert [usage.rss for usage in snapshot_from_pagemap(quiet, vmas, RssCounters(), 0).usages][::2] == [
        largest.rss
    ] * 2


def test_the_snapshot_carries_what_it_was_given(quiet: int) -> None:
    snapshot = snapshot_from_pagemap(quiet, read_maps(quiet), RssCounters(1, 2, 3, 4), 99)
    assert (snapshot.counters, snapshot.time_ns, snapshot.source) == (RssCounters(1, 2, 3, 4), 99, "pagemap")


def test_nothing_is_resident_after_the_end() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    with Residency(process.pid) as residency:
        vmas = read_maps(process.pid)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while any(usage.rss for usage in residency.usages(vmas)):
            assert time.monotonic() < deadline


@pytest.mark.skipif(os.geteuid() != 0, reason="the pagemap of a zombie is root's")
def test_a_zombie_has_no_pagemap() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(TargetError, match="no memory of its own"):
        Residency(process.pid)
    process.wait()


def test_no_process_no_pagemap() -> None:
    with pytest.raises(TargetError, match="does not exist"):
        Residency(4194305)


def test_reading_memory() -> None:
    memory = mmap.mmap(-1, 2 * PAGE, PRIVATE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[8:13] = b"hello"
    start = address_of(memory)
    with Residency(os.getpid()) as residency, MemoryReader(os.getpid(), residency) as read:
        assert read(start + 8, 5) == b"hello"
        assert read(start + PAGE, 8) is None  # never touched, and reading it would touch it
        with MemoryReader(os.getpid()) as read_all:
            assert read_all(start + PAGE, 8) == bytes(8)


@pytest.mark.parametrize("address", [0, 1 << 47, 0xFFFFFFFFFF600000, 1 << 64, -1])
def test_memory_that_cannot_be_read_is_none(address: int) -> None:
    with MemoryReader(os.getpid()) as read:
        assert read(address, 8) is None


def test_a_reader_without_a_process_gives_none() -> None:
    with MemoryReader(4194305) as read:
        assert read(0x1000, 8) is None
    assert read(0x1000, 8) is None
