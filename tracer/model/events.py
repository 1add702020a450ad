"""What the kernel side reports, as plain data: changes of the address space and of RSS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MapKind = Literal["mmap", "brk"]

_PAGE = 4096
# Pages are told apart within blocks of 64 of them (bpf/memtrace.h, struct rss_key).
BLOCK_PAGES = 64
_BLOCK = BLOCK_PAGES * _PAGE


@dataclass(frozen=True, slots=True)
class Mapped:
    """A range was mapped; ``stack`` is 0 where an allocator did it (``in_allocator``) or no stack is known."""

    time_ns: int
    start: int
    length: int
    perms: str
    is_file: bool
    offset: int
    stack: int
    in_allocator: bool
    kind: MapKind


@dataclass(frozen=True, slots=True)
class Unmapped:
    """A thread is unmapping a range: sent before the kernel does it."""

    start: int
    length: int
    tid: int = 0


@dataclass(frozen=True, slots=True)
class Attached:
    """A segment of System V shared memory was attached (shmat); its ``length`` is not in the call's arguments."""

    time_ns: int
    start: int
    segment: int
    perms: str
    stack: int
    in_allocator: bool
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Detaching:
    """A thread is detaching the segment that was attached at ``start`` (shmdt): sent before the kernel does it."""

    start: int
    tid: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What this thread was unmapping or detaching is still there: the call has failed."""

    tid: int


@dataclass(frozen=True, slots=True)
class Remapping:
    """A thread enters mremap: its old range may go away before it returns."""

    tid: int
    start: int
    length: int
    keep_old: bool


@dataclass(frozen=True, slots=True)
class Remapped:
    """mremap returned; ``new_start`` is None where it failed."""

    tid: int
    start: int
    length: int
    new_start: int | None
    new_length: int
    keep_old: bool


@dataclass(frozen=True, slots=True)
class Protected:
    """The permissions of a range changed."""

    start: int
    length: int
    perms: str


VmaEvent = Mapped | Unmapped | Remapping | Remapped | Protected | Attached | Detaching | Kept


@dataclass(frozen=True, slots=True)
class RssChange:
    """So many bytes came (or, negative, went) with this stack at these pages.

    ``pages`` are bits: bit n stands for the page n pages behind ``block``. Both are 0 where it is not known which pages
    these are, ``stack`` where none was taken. ``call`` is the name of the system call, where ``cause`` is
    ``other_call``.
    """

    stack: int
    block: int
    pages: int
    member: str
    cause: str
    bytes: int
    call: str = ""

    @classmethod
    def at(cls, stack: int, address: int, member: str, cause: str, size: int) -> RssChange:
        """A change of one page, or, with address 0, of pages that are not known."""
        block = address & -_BLOCK
        return cls(stack, block, 1 << (address - block) // _PAGE if address else 0, member, cause, size)
