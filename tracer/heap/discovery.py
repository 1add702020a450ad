"""Finds the allocators among a process's mappings."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tracer.heap.allocators import AllocatorImage, find_allocator
from tracer.heap.placement import place
from tracer.model.vma import Vma
from tracer.symbols.elf import ElfError, ElfImage


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An executable mapping's file, opened through the mapping itself: right for replaced and hidden files too."""

    path: str
    map_file: str
    allocator: AllocatorImage | None
    is_go: bool
    is_static: bool


class Discovery:
    """Looks at each mapped file once."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: set[tuple[str, int]] = set()
        self.unreadable: list[str] = []

    def look(self, vmas: Iterable[Vma]) -> Iterator[FoundImage]:
        """Yield every file that is mapped executable and was not seen before."""
        for vma in vmas:
            identity = (vma.device, vma.inode)
            if not vma.is_executable or not vma.is_file or identity in self._seen:
                continue
            found = self._inspect(vma)
            if found is not None:
                yield found

    def _inspect(self, vma: Vma) -> FoundImage | None:
        map_file = f"/proc/{self._pid}/map_files/{vma.start:x}-{vma.end:x}"
        path = vma.path.decode("utf-8", "backslashreplace")
        identity = (vma.device, vma.inode)
        try:
            with ElfImage.open(map_file) as image:
                self._seen.add(identity)
                allocator = find_allocator(image, path)
                if allocator is not None:
                    allocator = place(image, allocator)
                return FoundImage(path, map_file, allocator, image.is_go, image.is_static)
        except ElfError:
            self._seen.add(identity)
            return None  # JIT caches, data mapped executable: no ELF file, so no allocator in it
        except OSError as error:
            # It may only have been unmapped meanwhile: it is looked at again when it is seen again.
            if error.errno not in (errno.ENOENT, errno.ESRCH):
                self._seen.add(identity)
                self.unreadable.append(f"{path} cannot be read: {error.strerror}")
            return None
