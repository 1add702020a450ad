"""The unwind table of one image: rows and page index, from its .eh_frame or from the disk cache."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from .cfi import Program
from .ehframe import Function, make_pages, make_rows, parse
from .image import BytesSource, FileSource, Image, Segment, Source, UnwindTableError, open_image
from .rules import RULE_SIGNAL, Cfa

# mov $15,%rax; syscall: rt_sigreturn. C libraries whose signal trampoline has no unwind information have it bare.
SIGNAL_RETURN = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"
MAX_SEARCHED_CODE = 4 << 20


@dataclass(frozen=True, slots=True)
class ImageTable:
    """What the kernel's unwinder needs of an image.

    ``rows`` and ``pages`` hold u64 as bpf/unwind.h codes them, with addresses relative to ``origin``, an address of
    the image's own address space. ``reasons`` counts what could not be represented.
    """

    rows: array[int]
    pages: array[int]
    origin: int
    segments: tuple[Segment, ...]
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        """Bytes of rows and pages."""
        return 8 * (len(self.rows) + len(self.pages))


class TableStore(Protocol):
    """Where finished tables are kept (cache.TableCache)."""

    def load(self, build_id: str, digest: bytes) -> ImageTable | None:
        """The table stored for this build ID, if it was made of the same bytes."""

    def store(self, build_id: str, digest: bytes, table: ImageTable) -> None:
        """Keep the table; failure is not an error."""


def table_of_file(fd: int, store: TableStore | None = None) -> ImageTable:
    """The table of an open ELF file; raises UnwindTableError."""
    return table_of(FileSource(fd), store)


def table_of_memory(data: bytes) -> ImageTable:
    """The table of an image that was copied from memory whole (the vdso); raises UnwindTableError."""
    return table_of(BytesSource(data), None)


def table_of(source: Source, store: TableStore | None) -> ImageTable:
    """The table of an ELF image, from the store or newly made; raises UnwindTableError."""
    image = open_image(source)
    data = image.read_eh_frame()
    digest = content_digest(image, data)
    if store is not None:
        table = store.load(image.build_id, digest)
        if table is not None:
            return table
    table = make_table(image, data)
    if store is not None:
        store.store(image.build_id, digest, table)
    return table


def content_digest(image: Image, data: bytes) -> bytes:
    """Identifies all that a table is made of, so that a file that borrows another's build ID gets its own."""
    digest = hashlib.blake2b(data, digest_size=16)
    digest.update(repr((image.segments, image.eh_frame)).encode())
    return digest.digest()


def make_table(image: Image, data: bytes) -> ImageTable:
    """Parse .eh_frame's bytes and lay them out; raises UnwindTableError where nothing comes of it."""
    if image.eh_frame is None:
        raise UnwindTableError("no .eh_frame")
    functions, malformed = parse(data, image.eh_frame.address, terminated=image.eh_frame.terminated)
    functions += _bare_signal_returns(image, functions)
    made = make_rows(functions, image.segments)
    made.reasons.update(malformed)
    return ImageTable(made.rows, make_pages(made.rows), made.origin, image.segments, made.reasons)


def _bare_signal_returns(image: Image, functions: list[Function]) -> list[Function]:
    """Signal trampolines that no function covers; musl's is one. Only small images are searched."""
    programs = {id(function.program): function.program for function in functions}
    if any(rule & 15 == Cfa.SIGNAL for program in programs.values() for _, rule in program.rows):
        return []
    if sum(segment.size for segment in image.segments) > MAX_SEARCHED_CODE:
        return []
    spans = sorted((function.start, function.start + function.length) for function in functions)
    found = []
    for segment in image.segments:
        code = image.source.read(segment.offset, segment.size)
        at = code.find(SIGNAL_RETURN)
        while at >= 0:
            address = segment.address + at
            index = bisect_right(spans, (address, 1 << 64)) - 1
            if index < 0 or spans[index][1] <= address:
                # One byte earlier: the walk looks a return address up at the byte before it.
                found.append(Function(address - 1, len(SIGNAL_RETURN) + 1, Program([(0, RULE_SIGNAL)], [])))
            at = code.find(SIGNAL_RETURN, at + 1)
    return found
