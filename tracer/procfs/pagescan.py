"""Walking a process's page tables from outside: pagemap's ioctl PAGEMAP_SCAN, or its entries one by one.

Sources: Documentation/admin-guide/mm/pagemap.rst, include/uapi/linux/fs.h, fs/proc/task_mmu.c.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import time
from array import array
from collections.abc import Iterator
from struct import Struct

from tracer.errors import TargetError
from tracer.procfs.files import target_errors, thread_ids

PAGE = mmap.PAGESIZE
# Only what lies below is the target's; [vsyscall] does not.
_USER_END = 1 << 63

# Start and end of an address range, and which of the categories below its pages have.
Region = tuple[int, int, int]
IS_FILE, IS_PRESENT, IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4
_IS_PFNZERO, _IS_GUARD = 1 << 5, 1 << 8

# struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, and the four category masks
# (inverted, all of, any of, returned). struct page_region: start, end, categories.
_SCAN_ARG = Struct("=12Q")
_WALK_END = Struct("=32xQ")
_REGION = Struct("=3Q")
_PAGEMAP_SCAN = 3 << 30 | _SCAN_ARG.size << 16 | ord("f") << 8 | 16

# The kernel holds the target's mmap lock for one ioctl at most. It ends one at 4 MiB of pages found, or after 1 GiB
# of address space (page tables that stay after madvise(MADV_DONTNEED) are walked though nothing is found in them).
_MAX_PAGES = (4 << 20) // PAGE
_MAX_SPAN = 1 << 30

# Bits of an entry of the file; a frame number needs CAP_SYS_ADMIN, else it reads as 0.
_ENTRY_PRESENT, _ENTRY_SWAPPED, _ENTRY_FILE, _ENTRY_FRAME = 1 << 63, 1 << 62, 1 << 61, (1 << 55) - 1


class PageScanner:
    """The present and swapped pages of one process as regions; keeps the file open until ``close``.

    ``has_ioctl`` tells whether PAGEMAP_SCAN (kernel 6.7) is used. The zero page and guard markers are left out; by
    entries, the zero page can be told only where frame numbers are shown (CAP_SYS_ADMIN). ``kernel_ns`` is the time
    that its calls have taken so far, in nanoseconds: the target's mmap calls may have waited for them.
    """

    def __init__(self, pid: int, *, use_ioctl: bool = True) -> None:
        """Open the pagemap of ``pid``; raises TargetError and PrivilegeError."""
        self._fd = _open_pagemap(pid)
        self._hidden = self._find_hidden() if use_ioctl else None
        self._vector = ctypes.create_string_buffer(_REGION.size * _MAX_PAGES)
        self._zero_frame = 0 if self.has_ioctl else _zero_frame()
        self.kernel_ns = 0

    @property
    def has_ioctl(self) -> bool:
        """True where PAGEMAP_SCAN is used."""
        return self._hidden is not None

    def regions(self, start: int, end: int, also: int = 0) -> Iterator[Region]:
        """Ascending regions of IS_PRESENT or IS_SWAPPED pages in a page-aligned range.

        With ``also=IS_FILE`` the pages that are not anonymous are marked; neighbouring regions may be alike.
        """
        end = min(end, _USER_END)
        while start < end:
            if self._hidden is None:
                stop = min(end, start + _MAX_PAGES * PAGE)
                found = self._read_entries(start, stop, also)
            else:
                found, stop = self._scan(start, min(end, start + _MAX_SPAN), self._hidden, also)
            yield from found
            start = stop

    @property
    def has_guards(self) -> bool:
        """Whether ``guards`` finds anything (kernel 6.16)."""
        return bool((self._hidden or 0) & _IS_GUARD)

    def guards(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Ascending ranges of guard markers (MADV_GUARD_INSTALL); neighbours may touch."""
        masks = (0, _IS_GUARD, 0, _IS_GUARD)
        while self.has_guards and start < end:
            found, start = self._ask(start, min(end, start + _MAX_SPAN), masks)
            for low, high, _ in found:
                yield low, high

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _scan(self, start: int, end: int, hidden: int, also: int) -> tuple[list[Region], int]:
        """The regions that one ioctl finds, and where it stopped."""
        wanted = IS_PRESENT | IS_SWAPPED
        return self._ask(start, end, (hidden, hidden, wanted, wanted | also))

    def _ask(self, start: int, end: int, masks: tuple[int, int, int, int]) -> tuple[list[Region], int]:
        """One ioctl; ``masks`` are which categories to invert, all of which and any of which to want, and to tell."""
        vector = ctypes.addressof(self._vector)
        argument = bytearray(_SCAN_ARG.pack(_SCAN_ARG.size, 0, start, end, 0, vector, _MAX_PAGES, _MAX_PAGES, *masks))
        began = time.monotonic_ns()
        try:
            count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument)
        except OSError:
            # The address space is gone (ESRCH), or ends before this address (EFAULT).
            return [], end
        finally:
            self.kernel_ns += time.monotonic_ns() - began
        stop: int = _WALK_END.unpack_from(argument)[0]
        found = [
            (low, high, flags)
            for low, high, flags in _REGION.iter_unpack(memoryview(self._vector)[: count * _REGION.size])
        ]
        # Where the kernel went on after its own buffer of 512 regions was full, and then came to the end, walk_end
        # still says where the buffer was full (do_pagemap_scan, seen on 6.18): to trust it finds the rest twice.
        return found, max(stop, found[-1][1] if found else start + PAGE)

    def _read_entries(self, start: int, end: int, also: int) -> list[Region]:
        """The same from the file's entries, 8 bytes a page."""
        began = time.monotonic_ns()
        data = os.pread(self._fd, (end - start) // PAGE * 8, start // PAGE * 8)
        self.kernel_ns += time.monotonic_ns() - began
        entries = array("Q", data[: len(data) // 8 * 8])
        found: list[Region] = []
        if entries.count(0) == len(entries):
            return found
        first, current = start, 0
        for index, entry in enumerate((*entries, 0)):
            categories = self._categories(entry) & (IS_PRESENT | IS_SWAPPED | also) if entry else 0
            if categories != current:
                here = start + index * PAGE
                if current:
                    found.append((first, here, current))
                first, current = here, categories
        return found

    def _categories(self, entry: int) -> int:
        if entry & _ENTRY_PRESENT:
            if self._zero_frame and entry & _ENTRY_FRAME == self._zero_frame:
                return 0
            return IS_PRESENT | (IS_FILE if entry & _ENTRY_FILE else 0)
        return IS_SWAPPED if entry & _ENTRY_SWAPPED else 0

    def _find_hidden(self) -> int | None:
        """Return the categories to leave out, as far as the kernel knows them, or None where it lacks the ioctl.

        The zero page counts as present, a guard marker (MADV_GUARD_INSTALL, 6.13) as swapped; the category for the
        latter came with 6.16, and EINVAL answers an unknown one. ENOTTY or EINVAL: no PAGEMAP_SCAN.
        """
        for hidden in (_IS_PFNZERO | _IS_GUARD, _IS_PFNZERO):
            masks = (hidden, hidden, IS_PRESENT, IS_PRESENT)
            try:
                fcntl.ioctl(self._fd, _PAGEMAP_SCAN, bytearray(_SCAN_ARG.pack(_SCAN_ARG.size, *[0] * 7, *masks)))
            except OSError:
                continue
            return hidden
        return None


def _open_pagemap(pid: int) -> int:
    """Open the pagemap of a process, or of a live thread where the group leader has exited.

    An mm must be behind it: kernels from 6.7 up to the fix "proc: fix the issue of proc_mem_open returning NULL"
    (2025) dereference NULL when PAGEMAP_SCAN is called on the pagemap of a zombie or a thread of the kernel. Reading
    gives nothing there; and a descriptor keeps the mm that it was opened with.
    """
    for name in ("pagemap", *(f"task/{tid}/pagemap" for tid in thread_ids(pid))):
        path = f"/proc/{pid}/{name}"
        try:
            with target_errors(pid, path):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except TargetError:
            continue
        if len(os.pread(fd, 8, 0)) == 8:
            return fd
        os.close(fd)
    raise TargetError(f"process {pid} has ended or has no memory of its own")


def _zero_frame() -> int:
    """Return the frame number of the page that untouched memory reads as; 0 where frame numbers are hidden."""
    with mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page.find(b"x")  # a read fault maps the page of zeros
        cell = ctypes.c_char.from_buffer(page)
        address = ctypes.addressof(cell)
        del cell  # else the mapping cannot be closed
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as file:
                data = os.pread(file.fileno(), 8, address // PAGE * 8)
        except OSError:
            return 0
    return int.from_bytes(data, "little") & _ENTRY_FRAME
