"""Where the code of the probed allocators lies in the process: whether a system call came from within one of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from tracer.heap.discovery import FoundImage
from tracer.model.vma import Vma

_LIBRARIES = ("jemalloc", "tcmalloc", "mimalloc")
# A program's own call of brk leaves the C library through brk and sbrk; malloc's comes from deeper within.
_BRK_WRAPPERS = 2


class AllocatorCode:
    """Address ranges of allocator functions; of a library that is nothing but an allocator, all of its code.

    The stack of a system call made by malloc leads through malloc, but for functions that go on to another one by a
    jump. In an allocator's own library that does not matter. In the C library, whose other functions map memory too,
    brk is called by nobody but malloc.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._images: list[tuple[int, int]] = []

    def add(self, image: FoundImage, vmas: Iterable[Vma]) -> None:
        """Take in an image that has an allocator; ``vmas`` are the process's mappings."""
        if image.allocator is None:
            return
        code = next((vma for vma in vmas if image.map_file.endswith(f"/{vma.start:x}-{vma.end:x}")), None)
        if code is None:
            return
        self._images.append((code.start, code.end))
        if image.allocator.name in _LIBRARIES and "malloc" in image.path.rpartition("/")[2]:
            self._ranges.append((code.start, code.end))
        for site in image.allocator.sites:
            start = code.start + site.file_offset - code.offset
            self._ranges.append((start, start + max(site.size, 1)))
        self._ranges.sort()

    def leads_through(self, ips: Sequence[int], *, by_brk: bool) -> bool:
        """Whether a stack, innermost address first, leads through an allocator; ``by_brk``: from a call of brk."""
        if any(self._holds(ip) for ip in ips):
            return True
        innermost = ips[: _BRK_WRAPPERS + 1]
        return by_brk and any(
            len(innermost) > _BRK_WRAPPERS and all(start <= ip < end for ip in innermost) for start, end in self._images
        )

    def _holds(self, ip: int) -> bool:
        # Ranges may overlap (aliases, a whole library): those that begin before the address, latest first.
        for index in range(bisect_right(self._ranges, (ip, 1 << 64)) - 1, -1, -1):
            start, end = self._ranges[index]
            if ip < end:
                return True
            if ip - start > 1 << 26:
                break
        return False
