"""A VMA as /proc/PID/maps states it, and what of it is resident."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vma:
    """One line of /proc/PID/maps (proc(5)); addresses and sizes in bytes.

    ``path`` holds the raw bytes of the last field with the kernel's octal escapes (``\\012``) kept:
    a file name, ``[heap]``, ``[anon:NAME]``, ... or nothing.
    """

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    path: bytes

    @property
    def size(self) -> int:
        """Length of the address range in bytes."""
        return self.end - self.start

    @property
    def is_file(self) -> bool:
        """True where a file (also a deleted one, a memfd or shared memory) backs the range."""
        return self.inode != 0

    @property
    def is_executable(self) -> bool:
        """True where the range may be executed."""
        return self.perms[2:3] == "x"


@dataclass(frozen=True, slots=True)
class VmaUsage:
    """What of a VMA is in memory: the sizes of its block in /proc/PID/smaps, in bytes.

    A snapshot that was taken from PAGEMAP_SCAN knows ``rss``, ``anonymous`` and ``swap`` only.
    """

    vma: Vma
    rss: int
    pss: int = 0
    anonymous: int = 0
    private_clean: int = 0
    private_dirty: int = 0
    shared_clean: int = 0
    shared_dirty: int = 0
    swap: int = 0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RssCounters:
    """The members of an mm's RSS (RssAnon, RssFile, RssShmem, VmSwap of /proc/PID/status), in bytes."""

    anon: int = 0
    file: int = 0
    shmem: int = 0
    swap: int = 0

    @property
    def rss(self) -> int:
        """VmRSS in bytes; swap is no part of it."""
        return self.anon + self.file + self.shmem


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The memory of a process at one moment, VMA by VMA.

    ``time_ns`` is of CLOCK_MONOTONIC. ``source`` names the reader: ``smaps`` or ``pagemap``.
    ``torn`` is set where the process changed its mappings while they were read.
    """

    time_ns: int
    usages: tuple[VmaUsage, ...]
    counters: RssCounters
    source: str = "smaps"
    torn: bool = False

    @property
    def rss(self) -> int:
        """Sum of the VMAs' resident bytes."""
        return sum(usage.rss for usage in self.usages)
