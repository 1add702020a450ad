"""Address -> function name for one ELF image, and the search for its separate debug file.

A name is given only where a symbol covers the address: in a stripped library most code has no name, and the nearest
exported symbol before it would be a wrong one.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator

from tracer.symbols.elf import ElfImage
from tracer.symbols.elftypes import MAX_SYMBOLS, STB_LOCAL, ElfError, SymbolBlock

MAX_UNSIZED = 4 << 10
DEBUG_ROOT = "/usr/lib/debug"

_LOOK_BACK = 64
_CRC_LIMIT = 1 << 30


class SymbolTable:
    """The functions of an image in address order: four parallel arrays, 25 bytes a symbol. Names stay in the file."""

    def __init__(self, image: ElfImage, blocks: tuple[SymbolBlock, ...]) -> None:
        self._image = image
        self._blocks = blocks
        self.damaged = False
        starts, sizes, names, scopes = array("Q"), array("Q"), array("Q"), array("B")
        for start, size, name, is_local in self._rows():
            starts.append(start)
            sizes.append(size)
            names.append(name)
            scopes.append(is_local)
        # Sorting numbers rather than rows takes a third of the memory. Of equal starts, what has a size comes last.
        order = sorted(range(len(starts)), key=lambda at: 2 * starts[at] + (sizes[at] > 0))
        self._starts = array("Q", map(starts.__getitem__, order))
        self._sizes = array("Q", map(sizes.__getitem__, order))
        self._names = array("Q", map(names.__getitem__, order))
        self._locals = array("B", map(scopes.__getitem__, order))

    def __len__(self) -> int:
        return len(self._starts)

    @classmethod
    def from_elf(cls, image: ElfImage, debug: ElfImage | None = None) -> SymbolTable:
        """The table of an image, together with its debug file's symbols if there is one. Both stay in use."""
        return cls(image, (*image.symbol_blocks(), *(debug.symbol_blocks() if debug else ())))

    def lookup(self, vaddr: int) -> tuple[bytes, int] | None:
        """The (mangled) name of the function that covers an image address, and the distance from its start in bytes.

        A symbol without a size, which assembly has, covers what follows up to the next symbol, at most 4 KiB. Of
        several names the global one with the fewest leading underscores is taken, then the shortest.
        """
        last = bisect_right(self._starts, vaddr) - 1
        # A symbol inside of another one's range may end before vaddr; the outer one then still covers it.
        for index in range(last, max(-1, last - _LOOK_BACK), -1):
            if self._covers(index, vaddr, last):
                start = self._starts[index]
                name = self._best_name(start, vaddr, last, index)
                return (name, vaddr - start) if name else None
        return None

    def _covers(self, index: int, vaddr: int, last: int) -> bool:
        start, size = self._starts[index], self._sizes[index]
        if size:
            return vaddr - start < size
        return start == self._starts[last] and vaddr - start < MAX_UNSIZED and self._image.is_executable_vaddr(vaddr)

    def _best_name(self, start: int, vaddr: int, last: int, index: int) -> bytes:
        names: list[tuple[bool, int, int, bytes]] = []
        sized = bool(self._sizes[index])
        for at in range(index, max(-1, index - _LOOK_BACK), -1):
            if self._starts[at] != start:
                break
            if self._covers(at, vaddr, last) and bool(self._sizes[at]) == sized:
                name = self._name(self._names[at])
                names.append((bool(self._locals[at]), len(name) - len(name.lstrip(b"_")), len(name), name))
        return min((rank for rank in names if rank[3]), default=(True, 0, 0, b""))[3]

    def _name(self, reference: int) -> bytes:
        try:
            return self._blocks[reference >> 32].name(reference & 0xFFFFFFFF)
        except ElfError:
            self.damaged = True
            return b""

    def _rows(self) -> Iterator[tuple[int, int, int, bool]]:
        left = MAX_SYMBOLS
        for number, block in enumerate(self._blocks):
            high = number << 32
            try:
                for value, size, name, info in block.functions():
                    yield value, size, high | name, info >> 4 == STB_LOCAL
                    left -= 1
                    if not left:
                        self.damaged = True
                        return
            except ElfError:
                self.damaged = True


def find_debug_file(image: ElfImage, path: str, root: str = DEBUG_ROOT) -> ElfImage | None:
    """The image's separate debug file: by build ID, or by .gnu_debuglink beside the image or under ``root``.

    Only one with the same build ID (or, where there is none, the CRC of .gnu_debuglink) is taken. GDB manual,
    "Debugging Information in Separate Files".
    """
    build_id = image.build_id
    if build_id and len(build_id) > 2:
        found = _open(f"{root}/.build-id/{build_id[:2]}/{build_id[2:]}.debug")
        if found is not None and found.build_id == build_id:
            return found
        if found is not None:
            found.close()
    return _by_link(image, path, root)


def _by_link(image: ElfImage, path: str, root: str) -> ElfImage | None:
    section = image.section(b".gnu_debuglink")
    if section is None or not 8 <= section.size <= 4096:
        return None
    try:
        data = image.read(section.offset, section.size)
    except ElfError:
        return None
    name = os.fsdecode(data.split(b"\0", 1)[0])
    if not name or "/" in name or name in (".", ".."):
        return None
    crc = struct.unpack("<I", data[-4:])[0]
    directory = os.path.dirname(path)
    for candidate in (f"{root}{directory}/{name}", f"{directory}/.debug/{name}"):
        found = _open(candidate)
        if found is not None and _belongs(found, image, crc):
            return found
        if found is not None:
            found.close()
    return None


def _belongs(debug: ElfImage, image: ElfImage, crc: int) -> bool:
    if image.build_id and debug.build_id:
        return debug.build_id == image.build_id
    if debug.size > _CRC_LIMIT:
        return False
    value = 0
    try:
        for at in range(0, debug.size, 1 << 20):
            value = zlib.crc32(debug.read(at, min(1 << 20, debug.size - at)), value)
    except ElfError:
        return False
    return value == crc


def _open(path: str) -> ElfImage | None:
    try:
        return ElfImage.open(path)
    except (OSError, ValueError):
        return None
