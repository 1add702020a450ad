"""Which pages of a process are resident, by /proc/PID/pagemap, without the cost of smaps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from types import TracebackType
from typing import Self

from tracer.model.vma import RssCounters, Snapshot, Vma, VmaUsage
from tracer.procfs.pagescan import IS_FILE, IS_PRESENT, PAGE, PageScanner

# A hole between VMAs is walked in no time, but a large one would take a call for each GiB.
_MAX_HOLE = 64 << 20


class Residency:
    """The residency of one process's pages; a context manager that keeps the file open.

    A page counts as resident as in smaps: the zero page and swapped pages do not. (Pages of hugetlbfs do here, and
    do not in smaps; without PAGEMAP_SCAN the zero page can be told only with CAP_SYS_ADMIN.) After the process has
    ended or called exec, nothing is resident.
    """

    def __init__(self, pid: int, *, use_scan: bool = True) -> None:
        """Open the pagemap of ``pid``; ``use_scan=False`` reads entries even where the kernel has the ioctl.

        Raises TargetError where the process has ended or has no memory, PrivilegeError where it may not be read.
        """
        self._scanner = PageScanner(pid, use_ioctl=use_scan)

    @property
    def has_scan(self) -> bool:
        """True where the kernel has PAGEMAP_SCAN (6.7); else each GiB of address space costs 2 MiB of reading."""
        return self._scanner.has_ioctl

    @property
    def kernel_ns(self) -> int:
        """Nanoseconds that the kernel has walked the target's page tables for this object so far."""
        return self._scanner.kernel_ns

    def resident_runs(self, start: int, end: int) -> list[tuple[int, int]]:
        """The resident parts of a page-aligned address range as (start, end), ascending, none adjacent."""
        runs: list[tuple[int, int]] = []
        for low, high, categories in self._scanner.regions(start, end):
            if not categories & IS_PRESENT:
                continue
            if runs and runs[-1][1] == low:
                runs[-1] = (runs[-1][0], high)
            else:
                runs.append((low, high))
        return runs

    @property
    def has_guards(self) -> bool:
        """Whether the kernel tells guard markers apart (6.16)."""
        return self._scanner.has_guards

    def guards(self, start: int, end: int) -> list[tuple[int, int]]:
        """Where accesses are refused by guard markers (MADV_GUARD_INSTALL): (start, end), ascending, none adjacent."""
        found: list[tuple[int, int]] = []
        for low, high in self._scanner.guards(start, end):
            if found and found[-1][1] == low:
                found[-1] = (found[-1][0], high)
            else:
                found.append((low, high))
        return found

    def resident_bytes(self, start: int, end: int) -> int:
        """How many bytes of a page-aligned address range are resident."""
        regions = self._scanner.regions(start, end)
        return sum(high - low for low, high, categories in regions if categories & IS_PRESENT)

    def is_resident(self, start: int, end: int) -> bool:
        """True where every page that the range touches is resident; the range need not be aligned."""
        low = start & -PAGE
        high = (end + PAGE - 1) & -PAGE
        return self.resident_bytes(low, high) == high - low

    def usages(self, vmas: Sequence[Vma]) -> tuple[VmaUsage, ...]:
        """``rss``, ``anonymous`` and ``swap`` of each VMA in bytes, as smaps has them.

        Swap is that of private memory: what is swapped out of shared memory has no page table entry.
        """
        present: list[tuple[int, int]] = []
        swapped: list[tuple[int, int]] = []
        for start, end in _spans(vmas):
            for low, high, categories in self._scanner.regions(start, end):
                (present if categories & IS_PRESENT else swapped).append((low, high))
        in_memory, in_swap = _Coverage(present), _Coverage(swapped)
        return tuple([self._usage(vma, in_memory, in_swap) for vma in vmas])

    def close(self) -> None:
        """Close the file."""
        self._scanner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _usage(self, vma: Vma, in_memory: _Coverage, in_swap: _Coverage) -> VmaUsage:
        rss = in_memory.within(vma.start, vma.end)
        anonymous = 0
        if rss and vma.perms[3:4] == "p":
            # Asking whether a page is a file's makes the kernel look at the page's descriptor, ten times the cost of
            # the walk: done only where both kinds may be.
            anonymous = min(rss, self._anonymous_bytes(vma)) if _is_mixed(vma) else rss
        return VmaUsage(vma, rss, anonymous=anonymous, swap=in_swap.within(vma.start, vma.end))

    def _anonymous_bytes(self, vma: Vma) -> int:
        regions = self._scanner.regions(vma.start, vma.end, IS_FILE)
        return sum(high - low for low, high, categories in regions if categories & (IS_PRESENT | IS_FILE) == IS_PRESENT)


def snapshot_from_pagemap(pid: int, vmas: Sequence[Vma], counters: RssCounters, time_ns: int) -> Snapshot:
    """A snapshot of ``vmas`` with rss, anonymous and swap by the pagemap; everything else in it is 0.

    Raises TargetError where the process has ended or has no memory, PrivilegeError where it may not be read.
    """
    with Residency(pid) as residency:
        return Snapshot(time_ns, residency.usages(vmas), counters, source="pagemap")


class _Coverage:
    """How much of any range some ascending, disjoint ranges cover, by sums of their lengths."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._starts = [start for start, _ in ranges]
        self._lengths = [end - start for start, end in ranges]
        self._before = list(accumulate(self._lengths, initial=0))

    def within(self, start: int, end: int) -> int:
        """Bytes covered between two addresses."""
        return self._below(end) - self._below(start) if self._starts else 0

    def _below(self, address: int) -> int:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return 0
        return self._before[index] + min(address - self._starts[index], self._lengths[index])


def _is_mixed(vma: Vma) -> bool:
    """True for a private mapping of a file, copied on write, or of the kernel ([vdso])."""
    of_kernel = vma.path.startswith(b"[") and not vma.path.startswith((b"[heap", b"[stack", b"[anon"))
    return vma.is_file or of_kernel


def _spans(vmas: Sequence[Vma]) -> Iterator[tuple[int, int]]:
    """Address ranges that hold the VMAs and no large hole; ascending and disjoint even where the VMAs are not."""
    start = end = 0
    for vma in vmas:
        if vma.start > end + _MAX_HOLE:
            if end > start:
                yield start, end
            start = vma.start
        end = max(end, vma.end)
    if end > start:
        yield start, end
