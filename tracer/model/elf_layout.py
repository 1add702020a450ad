"""Which parts of a program's or library's mappings are text, rodata, relro, data and bss, by its program headers.

The kernel and ld.so map each PT_LOAD at its address plus one bias for the whole file, and the part of the last one
that has no bytes in the file as anonymous memory (fs/binfmt_elf.c, glibc elf/dl-load.c, _dl_protect_relro). The VMA
of such a bss may go on into memory that was mapped next to it, so that only the addresses tell what is whose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tracer.model.class_names import BSS, DATA, RELRO, RODATA, TEXT, ClassRange
from tracer.model.vma import Vma

_PAGE = 4096
_EXECUTABLE, _WRITABLE = 1, 2  # PF_X, PF_W (elf(5))


@dataclass(frozen=True, slots=True)
class Load:
    """A PT_LOAD of a program header table, as elf(5) has it; sizes in bytes."""

    flags: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int


@dataclass(frozen=True, slots=True)
class ElfLayout:
    """What of an ELF file says where its parts are mapped.

    ``relro`` are address ranges (PT_GNU_RELRO); ``fixed`` is set for ET_EXEC, which is mapped at its own addresses.
    """

    loads: tuple[Load, ...]
    relro: tuple[tuple[int, int], ...] = ()
    fixed: bool = False


def image_ranges(layout: ElfLayout, vmas: Sequence[Vma], name: str) -> tuple[list[ClassRange], list[ClassRange]]:
    """The parts of the mappings of one file (those of ``vmas``), and where its bss should be; ``name`` is the detail.

    What is mapped of the file in another way than the headers say (to read it, say) is in neither. A file may be
    loaded more than once.
    """
    parts: list[ClassRange] = []
    bss: list[ClassRange] = []
    for bias in sorted(_biases(layout, vmas)):
        for vma in vmas:
            parts += _parts(layout, vma, bias, name)
        bss += _bss(layout, bias, name)
    return parts, bss


def _biases(layout: ElfLayout, vmas: Iterable[Vma]) -> set[int]:
    """Where the file is loaded: code of it is mapped to be executed, at the place that the headers give it."""
    found: set[int] = set()
    for vma in vmas:
        for load in layout.loads:
            if not vma.is_executable or not load.flags & _EXECUTABLE or not _shows(vma, load):
                continue
            bias = _bias(vma, load)
            if not layout.fixed or bias == 0:
                found.add(bias)
    return found


def _shows(vma: Vma, load: Load) -> bool:
    """Whether a mapping has file bytes of a PT_LOAD."""
    return vma.offset < load.offset + load.filesz and _down(load.offset) < vma.offset + vma.size


def _bias(vma: Vma, load: Load) -> int:
    return (vma.start - vma.offset) - (_down(load.vaddr) - _down(load.offset))


def _parts(layout: ElfLayout, vma: Vma, bias: int, name: str) -> Iterator[ClassRange]:
    for load in layout.loads:
        if not load.filesz or _bias(vma, load) != bias:
            continue
        start = max(vma.start, _down(load.vaddr) + bias)
        end = min(vma.end, _up(load.vaddr + load.filesz) + bias)
        if start >= end:
            continue
        if load.flags & _EXECUTABLE:
            yield ClassRange(start, end, TEXT, name)
        elif not load.flags & _WRITABLE:
            yield ClassRange(start, end, RODATA, name)
        else:
            yield from _data(layout, vma, start, end, bias, name)


def _data(layout: ElfLayout, vma: Vma, start: int, end: int, bias: int, name: str) -> Iterator[ClassRange]:
    """A writable PT_LOAD: what ld.so has made read-only after relocation is relro."""
    if "w" not in vma.perms:
        for low, high in layout.relro:
            # The end is rounded down by ld.so: what shares its page with data stays writable.
            cut_start, cut_end = max(start, _down(low) + bias), min(end, _down(high) + bias)
            if cut_start < cut_end:
                if start < cut_start:
                    yield ClassRange(start, cut_start, DATA, name)
                yield ClassRange(cut_start, cut_end, RELRO, name)
                start = cut_end
    if start < end:
        yield ClassRange(start, end, DATA, name)


def _bss(layout: ElfLayout, bias: int, name: str) -> Iterator[ClassRange]:
    for load in layout.loads:
        start = _up(load.vaddr + load.filesz) if load.filesz else _down(load.vaddr)
        end = _up(load.vaddr + load.memsz)
        if load.flags & _WRITABLE and start < end:
            yield ClassRange(start + bias, end + bias, BSS, name)


def _down(address: int) -> int:
    return address & -_PAGE


def _up(address: int) -> int:
    return (address + _PAGE - 1) & -_PAGE
