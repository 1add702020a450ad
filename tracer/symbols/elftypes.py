"""The parts of an ELF64 file as data: segments, sections, symbol tables, notes. Layout: elf(5) and the gABI."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

STT_FUNC, STT_GNU_IFUNC = 2, 10
STB_LOCAL = 0
SYMBOL_SIZE = 24

MAX_NAME = 8 << 10
MAX_SYMBOLS = 2 << 20
MAX_STRINGS = 256 << 20

SYMBOL = struct.Struct("<IBBHQQ")
_CHUNK = 1 << 16


class ElfError(ValueError):
    """The file is no 64-bit little-endian ELF file for x86-64 or aarch64, or a part that was asked for is damaged."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One program header; offset and sizes in bytes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int
    align: int

    @property
    def is_executable(self) -> bool:
        """True where PF_X is set."""
        return bool(self.flags & 1)


@dataclass(frozen=True, slots=True)
class Section:
    """One section header; ``name`` is empty where the names could not be read."""

    name: bytes
    type: int
    vaddr: int
    offset: int
    size: int
    link: int


class Symbol(NamedTuple):
    """A function that the image defines. ``value`` is an address of the image, ``size`` is in bytes (0: unknown).

    With ``is_ifunc`` the address is that of a resolver, which returns the function's address: not the function.
    """

    value: int
    size: int
    name: bytes
    type: int
    binding: int

    @property
    def is_ifunc(self) -> bool:
        """True for STT_GNU_IFUNC."""
        return self.type == STT_GNU_IFUNC


@dataclass(frozen=True)
class SymbolBlock:
    """One symbol table and its strings, both still in the file that ``read`` reads."""

    read: Callable[[int, int], bytes]
    offset: int
    count: int
    strings: int
    strings_size: int

    def functions(self) -> Iterator[tuple[int, int, int, int]]:
        """The defined functions as (value, size, offset of the name, type | binding << 4), in the table's order."""
        for first in range(0, self.count, _CHUNK):
            data = self.read(self.offset + first * SYMBOL_SIZE, min(_CHUNK, self.count - first) * SYMBOL_SIZE)
            yield from [
                (value, size, name, info)
                for name, info, _, index, value, size in SYMBOL.iter_unpack(data)
                if (info & 15 == STT_FUNC or info & 15 == STT_GNU_IFUNC) and index and value
            ]

    def name(self, offset: int) -> bytes:
        """The name at this offset of the string table, at most MAX_NAME bytes, without the version that the static
        linker may append ("@@GLIBC_2.2.5"); empty where the offset lies outside.
        """
        if not 0 <= offset < self.strings_size:
            return b""
        longest = min(MAX_NAME, self.strings_size - offset)
        data = self.read(self.strings + offset, min(256, longest))
        if b"\0" not in data:
            data = self.read(self.strings + offset, longest)
        return data.split(b"\0", 1)[0].partition(b"@")[0]

    def all_strings(self) -> bytes:
        """The whole string table; an ElfError where it exceeds MAX_STRINGS."""
        if self.strings_size > MAX_STRINGS:
            raise ElfError("string table too large")
        return self.read(self.strings, self.strings_size)


def string_at(strings: bytes, offset: int, limit: int) -> bytes:
    """The NUL-terminated string at ``offset``, cut after ``limit`` bytes; empty outside of ``strings``."""
    end = strings.find(b"\0", offset, offset + limit)
    return strings[offset : end if end >= 0 else offset + limit]


def parse_notes(data: bytes, align: int) -> list[tuple[bytes, int, bytes]]:
    """The (name, type, contents) of each note in a PT_NOTE segment or SHT_NOTE section, up to the first damaged one."""
    notes: list[tuple[bytes, int, bytes]] = []
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        start = at + 12 + (name_size + 3 & ~3)
        if start + size > len(data):
            break
        notes.append((data[at + 12 : at + 12 + name_size].rstrip(b"\0"), kind, data[start : start + size]))
        at = start + (size + align - 1 & -align)
    return notes
