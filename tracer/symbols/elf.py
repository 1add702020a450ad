"""ELF64 images read through a file descriptor: segments, sections, notes, symbols and relocations.

The files are whatever the target has mapped, so nothing in them is trusted: every count is bounded by the file's size
and by the limits below. The file is read with pread(2), not mapped: one that its owner truncates while we look at it
then yields a short read, where a mapping would yield SIGBUS. Layout: elf(5), the gABI, and the x86-64 psABI.
"""

from __future__ import annotations

import lzma
import os
import stat
import struct
from array import array
from collections.abc import Callable, Iterator
from functools import cached_property

from tracer.symbols.elftypes import (
    MAX_NAME,
    MAX_SYMBOLS,
    STT_GNU_IFUNC,
    SYMBOL,
    SYMBOL_SIZE,
    ElfError,
    Section,
    Segment,
    Symbol,
    SymbolBlock,
    parse_notes,
    string_at,
)

__all__ = ["ElfError", "ElfImage", "Section", "Segment", "Symbol", "SymbolBlock"]

EM_X86_64 = 62
EM_AARCH64 = 183
ET_EXEC = 2
ET_DYN = 3
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_GNU_EH_FRAME = 1, 2, 3, 4, 0x6474E550
SHT_SYMTAB, SHT_NOTE, SHT_NOBITS, SHT_DYNSYM = 2, 7, 8, 11
DT_NEEDED, DT_PLTRELSZ, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ = 1, 2, 4, 5, 6, 7, 8
DT_STRSZ, DT_SONAME, DT_JMPREL, DT_GNU_HASH = 10, 14, 23, 0x6FFFFEF5

MAX_NOTES = 1 << 20
MAX_DYNAMIC = 1 << 20
MAX_RELOCATIONS = 1 << 20
MAX_SEGMENTS = 4096
MAX_SECTIONS = 1 << 17
MAX_SECTION_NAMES = 16 << 20
MAX_DEBUGDATA = 64 << 20

_RELA = struct.Struct("<QQq")
_LONGEST_CHAIN = 1 << 16


class ElfImage:
    """An ELF file or a copy of one in memory; all addresses are the image's own, before relocation.

    What is missing or damaged beyond the two headers is reported as absent, and sets ``damaged``. The file is held
    open until ``close``; ``fd`` is its descriptor (None for an image in memory).
    """

    def __init__(
        self, read: Callable[[int, int], bytes], size: int, close: Callable[[], None], fd: int | None = None
    ) -> None:
        self._read, self.size, self.close = read, size, close
        self.fd = fd
        self.damaged = False
        self.machine, self.type, self.entry, self._shoff, self._shnum, self._shstrndx = self._file_header()
        self.segments = self._program_headers()

    @classmethod
    def open(cls, path: str | bytes) -> ElfImage:
        """Open a regular file; raises OSError or ElfError."""
        return cls.from_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))

    @classmethod
    def from_fd(cls, fd: int) -> ElfImage:
        """Read through ``fd``, which the image then owns (it is closed also where this raises)."""

        def pread(offset: int, size: int) -> bytes:
            return os.pread(fd, size, offset)

        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ElfError("not a regular file")
            return cls(pread, status.st_size, lambda: os.close(fd), fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def from_bytes(cls, data: bytes) -> ElfImage:
        """Read an image that is in memory."""
        return cls(lambda offset, size: data[offset : offset + size], len(data), lambda: None)

    def __enter__(self) -> ElfImage:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes of the file; ElfError where the file does not have them."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ElfError("truncated or lying ELF file")
        try:
            data = self._read(offset, size)
        except OSError as error:
            raise ElfError(f"cannot read the ELF file: {error.strerror}") from error
        if len(data) != size:
            raise ElfError("the ELF file became shorter")
        return data

    def read_vaddr(self, vaddr: int, size: int) -> bytes:
        """Up to ``size`` bytes of the image at this address, fewer at the end of its segment; ElfError if unmapped."""
        for segment in self.segments:
            if segment.type == PT_LOAD and 0 <= vaddr - segment.vaddr < segment.filesz:
                skip = vaddr - segment.vaddr
                return self.read(segment.offset + skip, min(size, segment.filesz - skip))
        raise ElfError("address outside the image")

    # Headers

    def _file_header(self) -> tuple[int, int, int, int, int, int]:
        header = self.read(0, min(64, self.size))
        if len(header) < 64 or header[:4] != b"\x7fELF":
            raise ElfError("not an ELF file")
        if header[4] != 2 or header[5] != 1:
            raise ElfError("not a 64-bit little-endian ELF file")
        kind, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = struct.unpack_from(
            "<HHIQQQIHHHHHH", header, 16
        )
        if machine not in (EM_X86_64, EM_AARCH64):
            raise ElfError(f"ELF machine {machine} is not supported")
        if phnum and phentsize != 56:
            raise ElfError("program headers of a strange size")
        self._phoff, self._phnum = phoff, phnum
        if not shoff or shentsize != 64 or shoff + 64 > self.size:
            return machine, kind, entry, 0, 0, 0
        first = struct.unpack("<IIQQQQIIQQ", self.read(shoff, 64))
        # Numbers that do not fit the file header's 16 bits stand in section 0 (gABI, "ELF Header").
        self._phnum = first[7] if phnum == 0xFFFF else phnum
        return machine, kind, entry, shoff, shnum or first[5], first[6] if shstrndx == 0xFFFF else shstrndx

    def _program_headers(self) -> tuple[Segment, ...]:
        if self._phnum > MAX_SEGMENTS:
            raise ElfError("too many program headers")
        data = self.read(self._phoff, self._phnum * 56)
        return tuple(
            Segment(kind, flags, offset, vaddr, filesz, memsz, align)
            for kind, flags, offset, vaddr, _, filesz, memsz, align in struct.iter_unpack("<IIQQQQQQ", data)
        )

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The section headers; none where the file has none or they are damaged."""
        count = min(self._shnum, MAX_SECTIONS, (self.size - self._shoff) // 64)
        try:
            raw = list(struct.iter_unpack("<IIQQQQIIQQ", self.read(self._shoff, count * 64)))
            table = raw[self._shstrndx] if self._shstrndx < len(raw) else (0,) * 10
            names = self.read(table[4], min(table[5], MAX_SECTION_NAMES))
        except ElfError:
            self.damaged = True
            return ()
        return tuple(Section(string_at(names, row[0], 256), row[1], row[3], row[4], row[5], row[6]) for row in raw)

    def section(self, name: bytes) -> Section | None:
        """The first section of this name that has contents in the file."""
        return next((s for s in self.sections if s.name == name and s.type != SHT_NOBITS), None)

    @property
    def is_whole(self) -> bool:
        """Whether the file has all that its section headers say it has: false for one that was cut off."""
        return (
            bool(self.sections)
            and self._shoff + self._shnum * 64 <= self.size
            and all(s.type == SHT_NOBITS or s.offset + s.size <= self.size for s in self.sections)
        )

    @property
    def has_lines(self) -> bool:
        """Whether the file has DWARF: source lines and inlined functions."""
        return any(self.section(name) is not None for name in (b".debug_info", b".zdebug_info"))

    # Addresses

    @property
    def base(self) -> int:
        """The lowest address of the image: 0 for most libraries, the link address of a program that is not PIE."""
        return min((s.vaddr for s in self.segments if s.type == PT_LOAD), default=0)

    @property
    def is_pie(self) -> bool:
        """True for ET_DYN: a shared library or a position-independent executable."""
        return self.type == ET_DYN

    @property
    def is_static(self) -> bool:
        """True where no interpreter and no library is asked for (a statically linked program, libc of musl, vdso)."""
        return not any(s.type == PT_INTERP for s in self.segments) and not self.needed

    def file_offset_of(self, vaddr: int) -> int | None:
        """The file's offset of an image address, None outside of what the file holds."""
        for s in self.segments:
            if s.type == PT_LOAD and 0 <= vaddr - s.vaddr < s.filesz and 0 <= s.offset + vaddr - s.vaddr < self.size:
                return s.offset + vaddr - s.vaddr
        return None

    def vaddr_of_offset(self, offset: int) -> int | None:
        """The image address of a file offset (executable segments are asked first), None where none is loaded."""
        loads = [s for s in self.segments if s.type == PT_LOAD and 0 <= offset - s.offset < s.filesz]
        loads.sort(key=lambda s: not s.is_executable)
        return loads[0].vaddr + offset - loads[0].offset if loads else None

    def is_executable_vaddr(self, vaddr: int) -> bool:
        """True inside an executable PT_LOAD."""
        return any(s.type == PT_LOAD and s.is_executable and 0 <= vaddr - s.vaddr < s.memsz for s in self.segments)

    # Notes

    @cached_property
    def build_id(self) -> str | None:
        """The GNU build ID in hexadecimal."""
        return next((data.hex() for name, kind, data in self._notes if (name, kind) == (b"GNU", 3) and data), None)

    @cached_property
    def is_go(self) -> bool:
        """True where the Go toolchain linked the file."""
        names = {section.name for section in self.sections}
        return not names.isdisjoint({b".note.go.buildid", b".go.buildinfo", b".gopclntab"}) or any(
            name == b"Go" for name, _, _ in self._notes
        )

    @cached_property
    def _notes(self) -> tuple[tuple[bytes, int, bytes], ...]:
        areas = [(s.offset, s.filesz, s.align) for s in self.segments if s.type == PT_NOTE]
        areas += [(s.offset, s.size, 4) for s in self.sections if s.type == SHT_NOTE]
        notes: list[tuple[bytes, int, bytes]] = []
        for offset, size, align in areas[:64]:
            try:
                notes += parse_notes(self.read(offset, min(size, MAX_NOTES)), 8 if align == 8 else 4)
            except ElfError:
                self.damaged = True
        return tuple(notes)

    # The dynamic segment

    @cached_property
    def dynamic(self) -> tuple[tuple[int, int], ...]:
        """The (tag, value) pairs of PT_DYNAMIC."""
        segment = next((s for s in self.segments if s.type == PT_DYNAMIC), None)
        if segment is None:
            return ()
        try:
            data = self.read(segment.offset, min(segment.filesz, MAX_DYNAMIC) & ~15)
        except ElfError:
            self.damaged = True
            return ()
        pairs: list[tuple[int, int]] = []
        for tag, value in struct.iter_unpack("<QQ", data):
            if not tag:
                break
            pairs.append((tag, value))
        return tuple(pairs)

    def _dynamic_value(self, tag: int) -> int | None:
        return next((value for key, value in self.dynamic if key == tag), None)

    def _dynamic_strings(self, tag: int) -> tuple[bytes, ...]:
        table = self._dynamic_value(DT_STRTAB)
        found: list[bytes] = []
        for key, value in self.dynamic:
            if key == tag and table is not None and len(found) < 4096:
                try:
                    found.append(self.read_vaddr(table + value, 4096).split(b"\0", 1)[0])
                except ElfError:
                    self.damaged = True
        return tuple(found)

    @cached_property
    def needed(self) -> tuple[bytes, ...]:
        """The names of the libraries that the dynamic linker loads for this image (DT_NEEDED)."""
        return self._dynamic_strings(DT_NEEDED)

    @cached_property
    def soname(self) -> bytes | None:
        """The library's name for the dynamic linker (DT_SONAME)."""
        return next(iter(self._dynamic_strings(DT_SONAME)), None)

    # Symbols

    def symbol_blocks(self) -> tuple[SymbolBlock, ...]:
        """The symbol tables: .symtab, .dynsym, and the .symtab inside .gnu_debugdata, as far as they exist.

        A full .symtab holds all that .dynsym has; then the latter is left out.
        """
        full = self._section_symbols(SHT_SYMTAB)
        dynamic = self._section_symbols(SHT_DYNSYM) or self._dynamic_symbols()
        if full and dynamic and full.count >= dynamic.count:
            dynamic = None
        found = [block for block in (full, dynamic) if block is not None and block.count]
        return (*found, *(self._debugdata.symbol_blocks() if self._debugdata else ()))

    @cached_property
    def has_symtab(self) -> bool:
        """True where the symbols of the static linker were left in (or are in .gnu_debugdata)."""
        return self._section_symbols(SHT_SYMTAB) is not None or self._debugdata is not None

    def symbols(self) -> Iterator[Symbol]:
        """The functions that the image defines, of all tables; one may come more than once."""
        for block in self.symbol_blocks():
            try:
                strings = block.all_strings()
                versioned = b"@" in strings
                for value, size, at, info in block.functions():
                    name = string_at(strings, at, MAX_NAME)
                    yield Symbol(value, size, name.partition(b"@")[0] if versioned else name, info & 15, info >> 4)
            except ElfError:
                self.damaged = True

    @cached_property
    def functions(self) -> tuple[array[int], array[int]]:
        """Start addresses, ascending, and sizes of all functions that the image defines: what to search in."""
        rows: set[tuple[int, int]] = set()
        for block in self.symbol_blocks():
            try:
                rows.update((value, size) for value, size, _, _ in block.functions())
            except ElfError:
                self.damaged = True
        ordered = sorted(rows)
        return array("Q", [row[0] for row in ordered]), array("Q", [row[1] for row in ordered])

    def _section_symbols(self, kind: int) -> SymbolBlock | None:
        section = next((s for s in self.sections if s.type == kind), None)
        if section is None or section.link >= len(self.sections):
            return None
        strings = self.sections[section.link]
        if strings.type == SHT_NOBITS or section.offset + section.size > self.size:
            return None
        return self._block(section.offset, section.size // SYMBOL_SIZE, strings.offset, strings.size)

    def _dynamic_symbols(self) -> SymbolBlock | None:
        """.dynsym as the dynamic linker finds it: for files whose section headers were stripped."""
        values = [self._dynamic_value(tag) for tag in (DT_SYMTAB, DT_STRTAB, DT_STRSZ)]
        offsets = [self.file_offset_of(value) if value is not None else None for value in values[:2]]
        if offsets[0] is None or offsets[1] is None or values[2] is None:
            return None
        try:
            return self._block(offsets[0], self._hashed_symbols(), offsets[1], values[2])
        except ElfError:
            self.damaged = True
            return None

    def _block(self, offset: int, count: int, strings: int, strings_size: int) -> SymbolBlock:
        count = min(count, MAX_SYMBOLS, max(0, self.size - offset) // SYMBOL_SIZE)
        return SymbolBlock(self.read, offset, count, strings, max(0, min(strings_size, self.size - strings)))

    def _hashed_symbols(self) -> int:
        """How many dynamic symbols there are, which only the hash tables tell."""
        table = self._dynamic_value(DT_HASH)
        if table is not None:
            return int(struct.unpack("<II", self.read_vaddr(table, 8).ljust(8, b"\0"))[1])
        table = self._dynamic_value(DT_GNU_HASH)
        return self._gnu_hashed_symbols(table) if table is not None else 0

    def _gnu_hashed_symbols(self, table: int) -> int:
        """The chain that starts last ends with the last symbol; its end has the lowest bit set."""
        buckets, first, bloom, _ = struct.unpack("<IIII", self.read_vaddr(table, 16).ljust(16, b"\0"))
        start = table + 16 + bloom * 8
        data = self.read_vaddr(start, min(buckets, MAX_SYMBOLS) * 4)
        last = max((row[0] for row in struct.iter_unpack("<I", data[: len(data) & ~3])), default=0)
        if last < first:
            return int(first)
        chains = self.read_vaddr(start + buckets * 4 + (last - first) * 4, _LONGEST_CHAIN)
        for row in struct.iter_unpack("<I", chains[: len(chains) & ~3]):
            last += 1
            if row[0] & 1:
                break
        return int(last)

    @cached_property
    def _debugdata(self) -> ElfImage | None:
        """The compressed symbols that Fedora and others ship inside stripped files ("MiniDebugInfo")."""
        section = self.section(b".gnu_debugdata")
        if section is None:
            return None
        try:
            packed = self.read(section.offset, min(section.size, MAX_DEBUGDATA))
            inner = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * MAX_DEBUGDATA).decompress(packed, MAX_DEBUGDATA)
            image = ElfImage.from_bytes(inner)
        except (ElfError, lzma.LZMAError, EOFError):
            self.damaged = True
            return None
        image.__dict__["_debugdata"] = None  # One level only, whatever the inner file says.
        return image

    # Relocations

    @cached_property
    def slots(self) -> dict[int, int | None]:
        """Address of a slot (GOT, PLT's GOT) -> image address that it gets, None where another file provides it.

        Assumes that the image's own definition wins, which a preloaded library may prevent.
        """
        found: dict[int, int | None] = {}
        symbols = self._section_symbols(SHT_DYNSYM) or self._dynamic_symbols()
        for table, size in ((DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)):
            start, length = self._dynamic_value(table), self._dynamic_value(size)
            if start is None or length is None:
                continue
            try:
                data = self.read_vaddr(start, min(length, MAX_RELOCATIONS * 24))
                for slot, info, addend in _RELA.iter_unpack(data[: len(data) // 24 * 24]):
                    found[slot] = self._relocated(info, addend, symbols)
            except ElfError:
                self.damaged = True
        return found

    def _relocated(self, info: int, addend: int, symbols: SymbolBlock | None) -> int | None:
        kind, index = info & 0xFFFFFFFF, info >> 32
        if kind in (8, 1027):  # R_X86_64_RELATIVE, R_AARCH64_RELATIVE
            return addend
        if kind not in (1, 6, 7, 257, 1025, 1026) or symbols is None or index >= symbols.count:
            return None
        _, symbol_info, _, section, value, _ = SYMBOL.unpack(
            self.read(symbols.offset + index * SYMBOL_SIZE, SYMBOL_SIZE)
        )
        # R_X86_64_64 and R_AARCH64_ABS64 add; the GOT kinds have no addend. An ifunc's value is its resolver.
        return value + addend if section and symbol_info & 15 != STT_GNU_IFUNC else None
