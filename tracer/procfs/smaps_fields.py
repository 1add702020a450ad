"""Every field of a block of smaps, also of those that no kernel has yet: sizes in bytes, anything else as it is.

A block has the line of maps, then ``Name: NUMBER kB`` for sizes, ``Name: NUMBER`` for the rest (``THPeligible``,
``ProtectionKey``), and last ``VmFlags:`` (proc(5); fs/proc/task_mmu.c, show_smap). smaps_rollup has one block.

This is the reading that holds for any form of a block; ``smaps_table`` is the quick one and falls back to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tracer.model.vma import Vma
from tracer.procfs.maps import HeaderParser

# A size in bytes, another number, or text.
Value = int | str

FLAGS_FIELD: Final = "VmFlags"
# Sizes of pages: the same number in each block, of which no sum makes sense.
_PAGE_SIZES: Final = frozenset(("KernelPageSize", "MMUPageSize"))

_KIB = 1024
_FIELD = re.compile(rb"([A-Za-z_]\w{0,63}):(.*)", re.ASCII | re.DOTALL)
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class SmapsFields:
    """The fields of one block by the kernel's names, in its order: ``sizes`` in bytes, and ``others``."""

    sizes: dict[str, int] = field(default_factory=dict)
    others: dict[str, Value] = field(default_factory=dict)

    def get(self, name: str) -> Value | None:
        """The value of a field of either kind; None where the block has none of the name."""
        size = self.sizes.get(name)
        return self.others.get(name) if size is None else size


@dataclass(frozen=True, slots=True)
class SmapsBlock:
    """A VMA with all that smaps says about it; ``flags`` are the codes of VmFlags."""

    vma: Vma
    fields: SmapsFields
    flags: tuple[str, ...] = ()


def parse_fields(lines: bytes) -> SmapsFields:
    """The fields in lines ``Name: VALUE``; other lines (the one of maps, one that is cut off) are left out."""
    fields = SmapsFields()
    for line in lines.split(b"\n"):
        match = _FIELD.fullmatch(line)
        if match is None:
            continue
        name, text = match[1].decode("ascii"), match[2].strip()
        number = text.removesuffix(b" kB").rstrip()
        if not number.isdigit() or len(number) > _MAX_DIGITS:
            fields.others[name] = text.decode("ascii", "backslashreplace")
        elif len(number) < len(text):
            fields.sizes[name] = int(number) * _KIB
        else:
            fields.others[name] = int(number)
    return fields


def parse_flags(text: bytes) -> tuple[str, ...]:
    """The two-letter codes of a VmFlags line."""
    return tuple(text.decode("ascii", "backslashreplace").split())


def parse_blocks(data: bytes) -> Iterator[SmapsBlock]:
    """The blocks of an smaps file, line by line: ten times as slow as ``smaps_table``, which must agree with it."""
    parse = HeaderParser()
    vma: Vma | None = None
    body: list[bytes] = []
    for line in data.split(b"\n"):
        header = parse(line)
        if header is None:
            body.append(line)
            continue
        if vma is not None:
            yield _block(vma, body)
        vma, body = header, []
    if vma is not None:
        yield _block(vma, body)


def is_summable(name: str) -> bool:
    """True for a size that adds up over VMAs: all but sizes of pages."""
    return name not in _PAGE_SIZES and not name.endswith("PageSize")


def _block(vma: Vma, lines: list[bytes]) -> SmapsBlock:
    flags: tuple[str, ...] = ()
    body = []
    for line in lines:
        if line.startswith(b"VmFlags:"):
            flags = parse_flags(line[len(b"VmFlags:") :])
        else:
            body.append(line)
    return SmapsBlock(vma, parse_fields(b"\n".join(body)), flags)
