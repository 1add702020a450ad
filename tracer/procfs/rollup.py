"""/proc/PID/smaps_rollup (kernel 4.14): smaps summed up by the kernel, at a fraction of its cost.

Its sums are exact, while each number of smaps is cut down to whole KiB before anybody can add them up: PSS lacks half
a KiB for each mapping there (fs/proc/task_mmu.c, show_smaps_rollup).
"""

from __future__ import annotations

import re

from tracer.model.usage import Sizes
from tracer.procfs.smaps import parse_smaps

_KIB = 1024
# From the first line's end on: the name in that line is fixed, but no field is taken from it.
_FIELD = re.compile(rb"^(\w+): +(\d+) kB$", re.MULTILINE)


def parse_rollup(data: bytes) -> dict[bytes, int] | None:
    """The fields in bytes, whatever they are called; None where there are none (a process without memory)."""
    found = {name: int(number) * _KIB for name, number in _FIELD.findall(data)}
    return found if b"Rss" in found else None


def sizes_of_rollup(fields: dict[bytes, int], vss: int) -> Sizes:
    """The sizes of a process; ``vss`` is VmSize, which the file does not have. What an old kernel lacks is None."""
    private, shared = fields.get(b"Private_Hugetlb"), fields.get(b"Shared_Hugetlb")
    return Sizes(
        uss=fields.get(b"Private_Clean", 0) + fields.get(b"Private_Dirty", 0),
        pss=fields.get(b"Pss"),
        rss=fields[b"Rss"],
        vss=vss,
        swap=fields.get(b"Swap", 0),
        swap_pss=fields.get(b"SwapPss"),
        hugetlb=None if private is None or shared is None else private + shared,
    )


def sizes_of_smaps(data: bytes, vss: int) -> tuple[Sizes, int] | None:
    """The same from a whole smaps, where the kernel has no rollup, and the number of mappings; None where it is empty.

    PSS is then short of the kernel's by up to a KiB for each mapping.
    """
    usages = parse_smaps(data)
    if not usages:
        return None
    sizes = Sizes(
        uss=sum(usage.private_clean + usage.private_dirty for usage in usages),
        pss=sum(usage.pss for usage in usages),
        rss=sum(usage.rss for usage in usages),
        vss=vss,
        swap=sum(usage.swap for usage in usages),
    )
    return sizes, len(usages)
