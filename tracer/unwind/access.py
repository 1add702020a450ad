"""The way into the unwinder's maps in the kernel, and into the target's files and memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tracer.model.vma import Vma

from .image import FileSource, UnwindTableError, open_image

ROW_SIZE = 8
MAX_MAPPINGS = 1024  # of one process: what ten search steps reach
DEFAULT_LIMIT = 64 << 20


class MapWriter(Protocol):
    """Writes elements of a BPF array."""

    def write(self, index: int, data: bytes) -> None:
        """Store `data`, a whole number of elements, from element `index` on."""


class ProcessWriter(Protocol):
    """Writes the hash unwind_processes; each call is one atomic update."""

    def set(self, tgid: int, value: bytes) -> None:
        """Insert or replace; raises OSError where the map is full."""

    def delete(self, tgid: int) -> None:
        """Remove; a missing entry is no error."""


class BufferWriter:
    """Writes a BPF array that is mapped into memory (BPF_F_MMAPABLE); elements must be multiples of 8 bytes."""

    def __init__(self, buffer: memoryview, element_size: int) -> None:
        self._buffer = buffer
        self._element_size = element_size

    def write(self, index: int, data: bytes) -> None:
        """See MapWriter."""
        at = index * self._element_size
        self._buffer[at : at + len(data)] = data


@dataclass(frozen=True, slots=True)
class UnwindWriters:
    """The way into the four maps of bpf/unwind.bpf.c."""

    rows: MapWriter
    pages: MapWriter
    mappings: MapWriter
    processes: ProcessWriter


@dataclass(frozen=True, slots=True)
class UnwindSizes:
    """Elements of each map, to be given to the compiler as -DUNWIND_ROWS= and so on; the arrays are never swapped."""

    rows: int
    pages: int
    mappings: int = 4 * MAX_MAPPINGS
    processes: int = 64

    def flags(self) -> list[str]:
        """Options for the compiler."""
        return [
            f"-DUNWIND_ROWS={self.rows}",
            f"-DUNWIND_PAGES={self.pages}",
            f"-DUNWIND_MAPPINGS={self.mappings}",
            f"-DUNWIND_PROCESSES={self.processes}",
        ]


def open_mapping(pid: int, vma: Vma) -> int:
    """A descriptor of the file behind a mapping, also of a deleted one or one of another mount namespace."""
    return os.open(f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}", os.O_RDONLY | os.O_CLOEXEC)


def read_memory(pid: int, address: int, size: int) -> bytes:
    """Memory of a process; b"" where it cannot be read."""
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, size, address)
    except (OSError, OverflowError):
        return b""
    finally:
        os.close(fd)


def plan_sizes(pid: int, vmas: Iterable[Vma], *, limit: int = DEFAULT_LIMIT, spare: int = 4 << 20) -> UnwindSizes:
    """Sizes that hold the tables of these mappings and `spare` bytes of later ones; rows take at most `limit` bytes.

    In real binaries a row comes of 5.8 to 10 bytes of .eh_frame (libc 6.6, redis 5.8, node 10.0).
    """
    unwind_bytes = code_bytes = 0
    seen = set()
    for vma in vmas:
        if not vma.is_executable or not vma.is_file or (vma.device, vma.inode) in seen:
            continue
        seen.add((vma.device, vma.inode))
        with contextlib.suppress(OSError, UnwindTableError):
            fd = open_mapping(pid, vma)
            try:
                image = open_image(FileSource(fd))
            finally:
                os.close(fd)
            unwind_bytes += image.eh_frame.size if image.eh_frame else 0
            code_bytes += sum(segment.size for segment in image.segments)
    rows = min(unwind_bytes // 5 + spare // ROW_SIZE, limit // ROW_SIZE)
    # One entry covers 256 bytes of code.
    pages = min((code_bytes >> 8) + spare // 2 // ROW_SIZE, limit // ROW_SIZE // 2)
    return UnwindSizes(rows=max(rows, 1), pages=max(pages, 1))
