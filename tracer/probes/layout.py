"""The layouts that the BPF programs and Python share: bpf/memtrace.h stated for the struct module.

tests/unit/test_layout.py has the C compiler compare both.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

MAX_DEPTH = 127
CERTAIN = 1 << 32
WEIGHT_SHIFT = 12
RSS_MEMBERS = ("file", "anon", "swap", "shmem")

SETTINGS = struct.Struct("<7Q")
CONTROL = struct.Struct("<4Q")
LIVE_KEY = struct.Struct("<QII")
LIVE_VALUE = struct.Struct("<4Q")
TOTALS_KEY = struct.Struct("<2Q")
TOTALS_VALUE = struct.Struct("<8Q")
STACK_HEAD = struct.Struct("<II")
STACK_SIZE = STACK_HEAD.size + 8 * MAX_DEPTH
EVENT = struct.Struct("<7Q4IiI")
RSS_KEY = struct.Struct("<QQHHI")
RSS_VALUE = struct.Struct("<qQ")
# tid, taken, epoch, left, heap, hole; ip, sp, bp, next; key; sum; served, pad.
FAULT_RUN = struct.Struct("<6I4QQQHHIqQ4Q")
RSS_LAST = struct.Struct("<qQ")


class StackStatus(IntEnum):
    """Bits of ``struct stack_value.status``."""

    COMPLETE = 1
    NO_MAPPING = 2
    NO_ROW = 4
    READ_FAILED = 8
    TRUNCATED = 16
    THROUGH_FRAME_POINTERS = 32
    THROUGH_SIGNAL = 64
    UNSUPPORTED = 128
    NO_TABLE = 256
    HIDDEN_RETURN = 512


class EventKind(IntEnum):
    """``enum event_kind``."""

    MAP = 1
    UNMAP = 2
    REMAP_ENTER = 3
    REMAP = 4
    BRK_GROW = 5
    PROTECT = 6
    ADVISE = 7
    RESYNC = 8
    EXEC = 9
    ATTACH = 10
    DETACH = 11
    KEPT = 12


class RssCause(IntEnum):
    """``enum rss_cause``."""

    FAULT = 0
    MMAP = 1
    MUNMAP = 2
    MREMAP = 3
    BRK = 4
    MADVISE = 5
    OTHER_CALL = 6
    OTHER_CONTEXT = 7
    KSWAPD = 8
    KHUGEPAGED = 9


class CallShape(IntEnum):
    """``enum call_shape``."""

    MALLOC = 1
    VALLOC = 2
    CALLOC = 3
    REALLOC = 4
    REALLOCARRAY = 5
    MEMALIGN = 6
    POSIX_MEMALIGN = 7


class Event(NamedTuple):
    """``struct event``; addresses and lengths in bytes, ``time_ns`` of CLOCK_MONOTONIC."""

    time_ns: int
    address: int
    length: int
    old_address: int
    old_length: int
    offset: int
    stack: int
    kind: int
    tid: int
    prot: int
    flags: int
    fd: int
    in_allocator: int


class Settings(NamedTuple):
    """``struct settings``."""

    enabled: int = 0
    heap_is_known: int = 0
    count_faults: int = 0
    sample_bytes: int = 1
    sample_scale: int = 1 << 48
    probed_since: int = 0
    fault_stacks: int = 1


class Control(NamedTuple):
    """``struct control``."""

    epoch: int = 0
    brk: int = 0
    heap_start: int = 0
    mm_id: int = 0


class Totals(NamedTuple):
    """``struct totals``: what a stack allocated and freed since tracing began; only ever grows.

    Estimates where calls are sampled: ``sampled`` calls stand for so many. In whole blocks, which the kernel's are not.
    ``late_frees`` are those of blocks from before a gap in which the malloc probes were off.
    """

    allocations: int
    allocated_bytes: int
    frees: int
    freed_bytes: int
    lost: int
    lost_bytes: int
    sampled: int = 0
    late_frees: int = 0

    @classmethod
    def unpacked(cls, value: Sequence[int]) -> Totals:
        """From the kernel's struct, whose blocks are in 1 / 2**WEIGHT_SHIFT."""
        allocations, allocated_bytes, frees, freed_bytes, lost, lost_bytes, sampled, late = map(int, value)
        half = 1 << WEIGHT_SHIFT >> 1
        return cls(
            (allocations + half) >> WEIGHT_SHIFT,
            allocated_bytes,
            (frees + half) >> WEIGHT_SHIFT,
            freed_bytes,
            (lost + half) >> WEIGHT_SHIFT,
            lost_bytes,
            sampled,
            (late + half) >> WEIGHT_SHIFT,
        )

    @property
    def live_bytes(self) -> int:
        """Bytes allocated and not freed."""
        return self.allocated_bytes - self.freed_bytes

    @property
    def live_count(self) -> int:
        """Blocks allocated and not freed."""
        return self.allocations - self.frees


class Counter(NamedTuple):
    """A counter of ``enum counter``: its name, whether it counts something lost, and what it means."""

    name: str
    is_loss: bool
    meaning: str


def parse_counters(header: str) -> tuple[Counter, ...]:
    """Read the counters from the text of bpf/memtrace.h, their one place of definition, in index order."""
    body = re.search(r"enum counter \{(.*?)\n\tCOUNTERS\n", header, re.DOTALL)
    if body is None:
        raise ValueError("bpf/memtrace.h has no enum counter")
    entries = re.findall(r"COUNT_(\w+),\s*/\* (LOSS: )?(.*?) \*/", body.group(1))
    return tuple(Counter(name.lower(), bool(loss), meaning) for name, loss, meaning in entries)
