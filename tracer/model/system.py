"""The memory of the whole machine, area by area: what is used, and how much of that could be taken back at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Area:
    """Bytes used for something, and the part of them that is ``cache``; None where it is not known.

    ``parts`` are what is known of its inside; they need not add up to it.
    """

    name: str
    used: int | None
    cache: int | None
    parts: tuple[tuple[str, int], ...] = ()

    @property
    def noncache(self) -> int | None:
        """What of it cannot be taken back."""
        return None if self.used is None or self.cache is None else self.used - self.cache


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """The areas; those ``inside`` of MemTotal add up to ``total``. Bytes."""

    total: int
    outside: tuple[Area, ...]
    inside: tuple[Area, ...]
    available: int | None
    swap_total: int
    swap_used: int

    @property
    def areas(self) -> tuple[Area, ...]:
        """All of them, the machine's own first."""
        return self.outside + self.inside


def system_memory(meminfo: Mapping[str, int], ram: int | None, image: int | None) -> SystemMemory | None:
    """The areas by the fields of /proc/meminfo; None where it lacks those that everything rests on.

    Userspace is AnonPages and Mapped. The page cache is what no process has mapped of Cached and Buffers; shared
    memory and tmpfs (Shmem) are in there, but nothing can be taken back of them, so they do not count as cache.
    The kernel's part is the rest, so that the areas add up to MemTotal. ``ram`` is what the machine has and ``image``
    what the kernel's image takes of it: that, firmware and the kernel's table of page frames are no part of MemTotal.
    """
    try:
        total, free = meminfo["MemTotal"], meminfo["MemFree"]
        anonymous, mapped, cached = meminfo["AnonPages"], meminfo["Mapped"], meminfo["Cached"]
    except KeyError:
        return None
    buffers, shmem = meminfo.get("Buffers", 0), meminfo.get("Shmem", 0)
    unmapped = max(cached + buffers - mapped, 0)
    hugetlb = meminfo.get("Hugetlb", meminfo.get("HugePages_Total", 0) * meminfo.get("Hugepagesize", 0))
    kernel = total - free - anonymous - mapped - unmapped - hugetlb
    # How much of the shared memory is mapped is not told: what does not fit into the unmapped cache is.
    mapped_shmem = max(shmem - unmapped, 0)
    inside = [
        Area("kernel", kernel, min(_reclaimable(meminfo), max(kernel, 0)), _parts(meminfo, _KERNEL_PARTS)),
        Area("page cache", unmapped, max(unmapped - shmem, 0), _parts(meminfo, _CACHE_PARTS)),
        Area(
            "userspace",
            anonymous + mapped,
            max(mapped - mapped_shmem, 0),
            (("anonymous", anonymous), ("mapped files", mapped)),
        ),
        Area("free", free, free),
    ]
    if hugetlb:
        inside.insert(-1, Area("huge page pool", hugetlb, 0))
    outside = (
        Area("reserved at boot", None if ram is None else max(ram - total - (image or 0), 0), 0),
        Area("kernel image", image, 0),
    )
    swap_total = meminfo.get("SwapTotal", 0)
    return SystemMemory(
        total, outside, tuple(inside), meminfo.get("MemAvailable"), swap_total, swap_total - meminfo.get("SwapFree", 0)
    )


_KERNEL_PARTS = {
    "slab, reclaimable": "SReclaimable",
    "slab, unreclaimable": "SUnreclaim",
    "page tables": "PageTables",
    "kernel stacks": "KernelStack",
    "per-CPU": "Percpu",
    "vmalloc": "VmallocUsed",
    "compressed swap": "Zswap",
}
_CACHE_PARTS = {"buffers": "Buffers", "shared memory and tmpfs": "Shmem", "dirty": "Dirty", "writeback": "Writeback"}


def _parts(meminfo: Mapping[str, int], names: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    return tuple((name, meminfo[field]) for name, field in names.items() if meminfo.get(field))


def _reclaimable(meminfo: Mapping[str, int]) -> int:
    return meminfo.get("KReclaimable", meminfo.get("SReclaimable", 0))
