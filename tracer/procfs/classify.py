"""Classifies the memory of a live process: gathers what tracer/model/classes.py decides by. Stops and changes nothing.

Where something may not be read (files, threads, memory), less is told; nothing is raised for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tracer.errors import MemtraceError
from tracer.model.class_names import ClassRange
from tracer.model.classes import ProcessFacts, Row, classify_ranges, dominant_classes
from tracer.model.elf_layout import ElfLayout, Load
from tracer.model.language_heaps import may_be_go
from tracer.model.vma import Vma
from tracer.procfs.memory import MemoryReader
from tracer.procfs.pagemap import Residency
from tracer.procfs.threads import read_threads

if TYPE_CHECKING:
    from tracer.symbols.elf import ElfImage

_PT_LOAD, _PT_GNU_RELRO, _ET_EXEC = 1, 0x6474E552, 2
_MAX_IMAGES = 4096

__all__ = ["classify_process", "dominant_classes"]


def classify_process(pid: int, rows: Sequence[Row]) -> list[ClassRange]:
    """The classes of a live process's memory, as ranges; ``rows`` are its VMAs with their VmFlags (or none).

    The ranges cover each VMA completely, in the order of ``rows`` (see ``classify_ranges``). Pages that are not
    resident are not touched. ``dominant_classes`` makes one class per VMA of it.
    """
    vmas = [vma for vma, _ in rows]
    with ExitStack() as stack:
        images, is_go = _images(pid, vmas)
        try:
            residency = stack.enter_context(Residency(pid))
        except MemtraceError:
            return classify_ranges(rows, ProcessFacts(images, read_threads(pid), is_go))
        memory = stack.enter_context(MemoryReader(pid, residency))
        readable = memory.is_open
        facts = ProcessFacts(
            images=images,
            threads=read_threads(pid),
            is_go=is_go,
            read=memory if readable else None,
            read_many=memory.read_many if readable else None,
            guards=residency.guards if residency.has_guards else None,
        )
        return classify_ranges(rows, facts)


def _images(pid: int, vmas: Sequence[Vma]) -> tuple[dict[tuple[str, int], ElfLayout], bool]:
    """The layouts of the programs and libraries that are mapped, and whether the program is one of Go's."""
    # Imported here as the symbol code is large, and not all that reads /proc classifies.
    from tracer.symbols.elf import ElfError, ElfImage
    from tracer.symbols.resolver import open_mapping

    look_for_go, is_go = may_be_go(vmas), False
    found: dict[tuple[str, int], ElfLayout] = {}
    seen: set[tuple[str, int]] = set()
    for vma in vmas:
        key = (vma.device, vma.inode)
        # What is loaded has code; files that are only read may be many.
        if not vma.inode or not vma.is_executable or key in seen or len(seen) >= _MAX_IMAGES:
            continue
        seen.add(key)
        try:
            with ElfImage.from_fd(open_mapping(pid, vma)) as image:
                found[key] = _layout(image)
                is_go = is_go or (look_for_go and image.is_go)
        except (OSError, ElfError):
            continue
    return found, is_go


def _layout(image: ElfImage) -> ElfLayout:
    loads = [
        Load(segment.flags, segment.offset, segment.vaddr, segment.filesz, segment.memsz)
        for segment in image.segments
        if segment.type == _PT_LOAD
    ]
    relro = [(s.vaddr, s.vaddr + s.memsz) for s in image.segments if s.type == _PT_GNU_RELRO]
    return ElfLayout(tuple(loads), tuple(relro), image.type == _ET_EXEC)
