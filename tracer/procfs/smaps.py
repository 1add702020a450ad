"""/proc/PID/smaps: how much of each VMA is in memory, and whose it is (proc(5); fs/proc/task_mmu.c, show_smap).

These are the fields that tracing uses, a row for each VMA; ``smaps_table`` has all of them, in columns.
"""

from __future__ import annotations

from typing import cast

from tracer.model.vma import VmaUsage
from tracer.procfs.files import read_of_any_thread
from tracer.procfs.smaps_table import parse_smaps_table

_GIB = 1 << 30

# The fields of VmaUsage between ``vma`` and ``flags``, in its order.
_FIELDS = ("Rss", "Pss", "Anonymous", "Private_Clean", "Private_Dirty", "Shared_Clean", "Shared_Dirty", "Swap")


def parse_smaps(data: bytes) -> tuple[VmaUsage, ...]:
    """The VMAs of an smaps file with their sizes in bytes; unknown fields and flags are tolerated.

    A field that is missing is 0. A last block that is cut off counts as far as it goes, if its Rss is there.
    """
    table = parse_smaps_table(data)
    rss, *others = (table.sizes(name) for name in _FIELDS)
    columns = [column.map(lambda size: size or 0) for column in others]
    usages = map(VmaUsage, table.vmas(), cast("list[int]", rss), *columns, table.flags)
    if None not in rss.values:
        return tuple(usages)
    return tuple([usage for usage in usages if cast("int | None", usage.rss) is not None])


def read_smaps(pid: int) -> tuple[VmaUsage, ...]:
    """The VMAs of a process with what of them is resident; none for a kernel thread or a zombie.

    Expensive for the target: see ``estimate_smaps_seconds``. Where the group leader has exited but other threads
    run, theirs are read. Raises TargetError where the process does not exist or has ended, PrivilegeError where the
    caller may not look.
    """
    return parse_smaps(read_of_any_thread(pid, "smaps"))


def estimate_smaps_seconds(vma_count: int, rss: int) -> float:
    """How long one read of smaps takes, and for how long it may block the target's mmap calls, in seconds.

    3.3 us per VMA and 30 ms per GiB of ``rss`` bytes. Measured on kernel 6.18: 10-43 ms per GiB of 4 KiB pages,
    depending on how scattered they are; huge pages cost 0.1 ms per GiB, so that this is an upper bound for them.
    """
    return vma_count * 3.3e-6 + rss / _GIB * 0.030
