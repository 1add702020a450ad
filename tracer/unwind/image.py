"""Just enough of ELF to find a file's unwind information and what of it is code.

Everything is read with pread, never through a mapping of the file: a target may truncate its own files, and that
would end memtrace with SIGBUS. Input is untrusted: each field is checked against the file's size before use.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

PT_LOAD, PT_NOTE, PT_GNU_EH_FRAME = 1, 4, 0x6474E550
SHT_NOBITS = 8
PF_X = 1
EM_X86_64 = 62
NT_GNU_BUILD_ID = 3
MAX_HEADERS = 4096
MAX_SECTION_NAMES = 1 << 20
MAX_NOTES = 1 << 16
MAX_EH_FRAME = 128 << 20
PE_OMIT, PE_PCREL_SDATA4 = 0xFF, 0x1B


class UnwindTableError(Exception):
    """The image has no unwind information that can be used; the text says why."""


class Source(Protocol):
    """Bytes at offsets: an open file or a copy of memory."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """The bytes there; fewer at the end of the source."""


class FileSource:
    """An open file; the caller keeps and closes the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        """See Source; a read that fails yields nothing, as past the end."""
        parts = []
        while size > 0:
            try:
                part = os.pread(self._fd, size, offset)
            except (OSError, OverflowError):
                break
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)


class BytesSource:
    """A copy of memory that holds an image, e.g. the vdso."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        """See Source."""
        return self._data[offset : offset + size]


@dataclass(frozen=True, slots=True)
class Segment:
    """An executable PT_LOAD: where its bytes are in the file and in the image's address space."""

    address: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Section:
    """Where unwind information lies; `terminated` where only its terminator says where it ends."""

    address: int
    offset: int
    size: int
    terminated: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """An ELF image's code segments, in order of address, its build ID ("" where it has none) and its .eh_frame."""

    source: Source = field(repr=False)
    segments: tuple[Segment, ...]
    build_id: str
    eh_frame: Section | None

    def read_eh_frame(self) -> bytes:
        """The section's bytes; raises UnwindTableError where there are none, or too many."""
        if self.eh_frame is None or not self.eh_frame.size:
            raise UnwindTableError("no .eh_frame")
        if self.eh_frame.size > MAX_EH_FRAME:
            raise UnwindTableError(".eh_frame is too large")
        return self.source.read(self.eh_frame.offset, self.eh_frame.size)


_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")


def open_image(source: Source) -> Image:
    """Read the headers; raises UnwindTableError where this is no x86-64 ELF image."""
    raw = source.read(0, _HEADER.size)
    if len(raw) < _HEADER.size or raw[:6] != b"\x7fELF\x02\x01":
        raise UnwindTableError("not a 64-bit little-endian ELF image")
    header = _HEADER.unpack(raw)
    if header[2] != EM_X86_64:
        raise UnwindTableError("not an x86-64 image")
    programs = list(_headers(source, _PROGRAM_HEADER, header[5], header[9], header[10]))
    code = (p for p in programs if p[0] == PT_LOAD and p[1] & PF_X and p[2] < source.size)
    segments = tuple(sorted((Segment(p[3], p[2], min(p[5], source.size - p[2])) for p in code), key=_key))
    sections = list(_headers(source, _SECTION_HEADER, header[6], header[11], header[12]))
    eh_frame = _named_section(source, sections, header[13]) or _section_of_header(source, programs)
    return Image(source, segments, _build_id(source, programs), eh_frame)


def _key(segment: Segment) -> int:
    return segment.address


def _headers(
    source: Source, layout: struct.Struct, offset: int, entry_size: int, count: int
) -> Iterator[tuple[int, ...]]:
    """A table of headers; nothing where it is not of the expected kind or not wholly in the file."""
    if not offset or entry_size != layout.size or count > MAX_HEADERS:
        return
    raw = source.read(offset, layout.size * count)
    if len(raw) == layout.size * count:
        yield from layout.iter_unpack(raw)


def _named_section(source: Source, sections: list[tuple[int, ...]], names_index: int) -> Section | None:
    if names_index >= len(sections):
        return None
    names = source.read(sections[names_index][4], min(sections[names_index][5], MAX_SECTION_NAMES))
    for section in sections:
        name = section[0]
        if names[name : name + 10] == b".eh_frame\0" and section[1] != SHT_NOBITS:
            return Section(address=section[3], offset=section[4], size=section[5])
    return None


def _section_of_header(source: Source, programs: list[tuple[int, ...]]) -> Section | None:
    """.eh_frame as PT_GNU_EH_FRAME points to it: its end is not known, so it reaches to the end of its segment."""
    for program in programs:
        if program[0] != PT_GNU_EH_FRAME:
            continue
        raw = source.read(program[2], 8)
        if len(raw) < 8 or raw[1] != PE_PCREL_SDATA4:
            return None
        address = program[3] + 4 + struct.unpack_from("<i", raw, 4)[0]
        for load in programs:
            if load[0] == PT_LOAD and load[3] <= address < load[3] + load[5]:
                inside = address - load[3]
                return Section(address, load[2] + inside, min(load[5] - inside, source.size), terminated=True)
    return None


def _build_id(source: Source, programs: list[tuple[int, ...]]) -> str:
    for program in programs:
        if program[0] != PT_NOTE:
            continue
        notes = source.read(program[2], min(program[5], MAX_NOTES))
        at = 0
        while at + 12 <= len(notes):
            name_size, size, kind = struct.unpack_from("<III", notes, at)
            start = at + 12 + (name_size + 3 & ~3)
            if kind == NT_GNU_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0" and 0 < size <= 64:
                return notes[start : start + size].hex()
            at = start + (size + 3 & ~3)
    return ""
