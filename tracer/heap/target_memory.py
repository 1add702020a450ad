"""Reading much of another process's memory at once, without stopping it and without changing what is resident in it.

Source: process_vm_readv(2). Reading a page that the target never touched would give it page tables, and reading one
that is swapped out would bring it back, so only pages that are resident are read.
"""

from __future__ import annotations

import ctypes
import errno
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from tracer.heap.spans import Run, gaps
from tracer.procfs.files import thread_ids
from tracer.procfs.pagescan import IS_PRESENT, PAGE, PageScanner

# limits.h, IOV_MAX: ranges in one call.
_MAX_RANGES = 1024


@dataclass(frozen=True, slots=True)
class PageRuns:
    """The pages of a range that are in memory, and those that are swapped out: ascending and disjoint."""

    resident: tuple[Run, ...]
    swapped: tuple[Run, ...]


class TargetMemory(Protocol):
    """Memory that can be read by ranges: a live process's, or an image of one."""

    def pages(self, start: int, end: int) -> PageRuns:
        """What of a page-aligned range is resident, and what is swapped out."""
        ...

    def fill(self, view: memoryview, start: int, runs: Iterable[Run]) -> None:
        """Copy ``runs`` into ``view``, which begins at address ``start``; all else in it, and what fails, becomes 0."""
        ...

    def gather(self, addresses: Sequence[int], size: int) -> bytes:
        """``size`` bytes from each address, one after another; zeros where nothing can be read."""
        ...


class LiveMemory:
    """The memory of a running process; a context manager. After the process has ended, all reads as zeros."""

    def __init__(self, pid: int) -> None:
        """Get hold of ``pid``; raises TargetError where it has no memory, PrivilegeError where it may not be read."""
        self._scanner = PageScanner(pid)
        self._readv = ctypes.CDLL(None, use_errno=True).process_vm_readv
        long = ctypes.c_ulong
        self._readv.argtypes = [ctypes.c_int, ctypes.c_void_p, long, ctypes.c_void_p, long, long]
        self._readv.restype = ctypes.c_ssize_t
        # A group leader that has exited has no memory, but its threads have.
        self._tids = [pid, *(tid for tid in thread_ids(pid) if tid != pid)]

    def pages(self, start: int, end: int) -> PageRuns:
        """What of a page-aligned range is resident, and what is swapped out."""
        resident: list[Run] = []
        swapped: list[Run] = []
        for low, high, categories in self._scanner.regions(start, end):
            runs = resident if categories & IS_PRESENT else swapped
            if runs and runs[-1][1] == low:
                low = runs.pop()[0]
            runs.append((low, high))
        return PageRuns(tuple(resident), tuple(swapped))

    def fill(self, view: memoryview, start: int, runs: Iterable[Run]) -> None:
        """Copy ``runs`` into ``view``; all else in it becomes 0."""
        rows = list(runs)
        for low, high in gaps(rows, start, start + len(view)):
            view[low - start : high - start] = bytes(high - low)
        if not rows:
            return
        base = ctypes.addressof(ctypes.c_char.from_buffer(view))
        for first in range(0, len(rows), _MAX_RANGES):
            part = rows[first : first + _MAX_RANGES]
            remote = array("Q", [word for low, high in part for word in (low, high - low)])
            local = array("Q", [word for low, high in part for word in (base + low - start, high - low)])
            done = self._read(local, remote)
            for low, high in part:
                missing = (high - low) - done
                if missing > 0:
                    view[max(low, high - missing) - start : high - start] = bytes(min(missing, high - low))
                done = max(0, done - (high - low))

    def gather(self, addresses: Sequence[int], size: int) -> bytes:
        """``size`` bytes from each address, one after another; zeros where nothing can be read."""
        data = bytearray(len(addresses) * size)
        base = ctypes.addressof(ctypes.c_char.from_buffer(data)) if data else 0
        at = 0
        while at < len(addresses):
            part = array("Q", addresses[at : at + _MAX_RANGES])
            remote = array("Q", [size]) * (2 * len(part))
            remote[0::2] = part
            done = self._read(array("Q", [base + at * size, len(part) * size]), remote)
            # What stopped it cannot be read: that one stays zeros, and reading goes on behind it.
            at += max(0, done) // size + (done < len(part) * size)
        return bytes(data)

    def close(self) -> None:
        """Let go of the process."""
        self._scanner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, local: array[int], remote: array[int]) -> int:
        """Bytes read, -1 where it failed."""
        ours, theirs = local.buffer_info()[0], remote.buffer_info()[0]
        while self._tids:
            done = int(self._readv(self._tids[0], ours, len(local) // 2, theirs, len(remote) // 2, 0))
            if done >= 0 or ctypes.get_errno() != errno.ESRCH:
                return done
            del self._tids[0]
        return -1


def read_words(memory: TargetMemory, start: int, end: int) -> list[tuple[int, memoryview]]:
    """The resident parts of a page-aligned range as (address, 64-bit words)."""
    found: list[tuple[int, memoryview]] = []
    for low, high in memory.pages(start, end).resident:
        data = bytearray(high - low)
        memory.fill(memoryview(data), low, [(low, high)])
        found.append((low, memoryview(data).cast("Q")))
    return found


def page_of(address: int) -> int:
    """The start of the page that holds an address."""
    return address & -PAGE
