"""What /proc/meminfo and /proc/iomem say about the whole machine's memory, in bytes."""

from __future__ import annotations

import re

from tracer.procfs.source import ProcSource

_KIB = 1024
_FIELD = re.compile(rb"^([^:\n]+): +(\d+)( kB)?$", re.MULTILINE)
_RANGE = re.compile(rb"^( *)([0-9a-f]+)-([0-9a-f]+) : (.*)$", re.MULTILINE)


def parse_meminfo(data: bytes) -> dict[str, int]:
    """The fields by their names: sizes in bytes, counts (HugePages_Total) as they are (proc(5))."""
    return {
        name.decode("ascii", "replace"): int(number) * (_KIB if unit else 1)
        for name, number, unit in _FIELD.findall(data)
    }


def read_meminfo(source: ProcSource) -> dict[str, int]:
    """The fields of meminfo; none where the source has no such file."""
    try:
        return parse_meminfo(source.read_system("meminfo"))
    except OSError:
        return {}


def parse_iomem(data: bytes) -> tuple[int | None, int | None]:
    """Bytes of RAM that the machine has, and of it those of the kernel's image; None where it is not said.

    Without CAP_SYS_ADMIN all addresses read as 0 (kernel/resource.c, r_show).
    """
    ram = image = 0
    for indent, start, end, name in _RANGE.findall(data):
        size = int(end, 16) - int(start, 16) + 1
        if size == 1:  # hidden: 0 to 0
            continue
        if not indent and name == b"System RAM":
            ram += size
        elif indent and name in (b"Kernel code", b"Kernel rodata", b"Kernel data", b"Kernel bss"):
            image += size
    return ram or None, image or None


def read_iomem(source: ProcSource) -> tuple[int | None, int | None]:
    """See ``parse_iomem``; (None, None) where the source has no such file."""
    try:
        return parse_iomem(source.read_system("iomem"))
    except OSError:
        return None, None
