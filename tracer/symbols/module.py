"""One mapped file of the target: from an offset in it to a function, a source line and what was inlined there."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from tracer.symbols.debuginfod import Debuginfod
from tracer.symbols.demangle import printable
from tracer.symbols.elf import ElfImage
from tracer.symbols.elftypes import ElfError
from tracer.symbols.lines import LineReader, Location
from tracer.symbols.table import SymbolTable, find_debug_file


@dataclass(slots=True)
class Sources:
    """Where debug information may come from. What is None is not asked; ``problems`` counts what was of no use."""

    debug_root: str | None
    lines: LineReader | None
    debuginfod: Debuginfod | None
    problems: Counter[str]


@dataclass(frozen=True, slots=True)
class Place:
    """What is at an offset: the image address (the offset where it is unknown), and the function that covers it.

    ``function`` is its mangled name and the distance from its start in bytes.
    """

    vaddr: int
    build_id: str | None
    function: tuple[bytes, int] | None


class Module:
    """A descriptor (or an image's bytes) until the first lookup, then its image and symbols.

    ``path`` is the file's path as it is on disk, ``name`` as the kernel shows it.
    """

    def __init__(self, name: bytes, path: bytes, source: int | bytes | None, sources: Sources) -> None:
        self.text = printable(name.decode("utf-8", "backslashreplace"))
        self._path = os.fsdecode(path)
        self._source = source
        self._sources = sources
        self._image: ElfImage | None = None
        self._debug: ElfImage | None = None
        self._table: SymbolTable | None = None
        self._searched = False

    def locate(self, offset: int) -> Place | None:
        """What is at a file offset, as far as local files tell; None if this is no ELF file."""
        self._parse()
        if self._image is None or self._table is None:
            return None
        vaddr = self._image.vaddr_of_offset(offset)
        if vaddr is None:
            return Place(offset, self._image.build_id, None)
        return Place(vaddr, self._image.build_id, self._table.lookup(vaddr))

    def search(self) -> None:
        """Look for debug information wherever it may be; takes seconds. ``locate`` and ``locations`` know more then."""
        self._parse()
        if self._searched or self._image is None or self._table is None:
            return
        self._searched = True
        sources, image = self._sources, self._image
        if self._debug is None and sources.lines is not None and not image.has_lines and sources.debug_root is not None:
            self._debug = find_debug_file(image, self._path, sources.debug_root)
        if self._debug is None and sources.debuginfod is not None and not image.has_symtab:
            self._debug = sources.debuginfod.fetch(image.build_id, self.text.rpartition("/")[2])
            if self._debug is not None:
                self._table = SymbolTable.from_elf(image, self._debug)

    def locations(self, vaddr: int) -> tuple[Location, ...]:
        """Source lines at an image address, innermost first, as far as ``search`` found any."""
        if self._sources.lines is None:
            return ()
        for image in (self._debug, self._image):
            if image is not None and image.has_lines:
                return self._sources.lines.lookup(image, vaddr)
        return ()

    def close(self) -> None:
        """Gives the descriptors back."""
        if isinstance(self._source, int):
            os.close(self._source)
        for image in (self._image, self._debug):
            if image is not None:
                image.close()
        self._source = self._image = self._debug = self._table = None

    @property
    def is_damaged(self) -> bool:
        """Whether a part of the file that was asked for could not be read."""
        images = [image for image in (self._image, self._debug) if image is not None]
        return any(image.damaged for image in images) or (self._table is not None and self._table.damaged)

    def _parse(self) -> None:
        source, self._source = self._source, None
        if source is None:
            return
        root = self._sources.debug_root
        try:
            self._image = ElfImage.from_fd(source) if isinstance(source, int) else ElfImage.from_bytes(source)
            if root is not None and not self._image.has_symtab:
                self._debug = find_debug_file(self._image, self._path, root)
            self._table = SymbolTable.from_elf(self._image, self._debug)
        except (ElfError, OSError):
            self._sources.problems["no ELF file"] += 1
