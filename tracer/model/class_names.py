"""The names of the classes of memory, and a range of addresses that has one. The names are those of the JSON form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TEXT: Final = "text"
RODATA: Final = "rodata"
RELRO: Final = "relro"
DATA: Final = "data"
BSS: Final = "bss"
HEAP: Final = "heap"
STACK: Final = "stack"
THREAD_STACK: Final = "thread stack"
ARENA: Final = "malloc arena"
MMAPPED: Final = "malloc mmapped"
FILE: Final = "file"
SHARED: Final = "shared memory"
JIT: Final = "jit"
GUARD: Final = "guard"
RESERVE: Final = "reserve"
KERNEL: Final = "kernel"
MEMTRACE: Final = "memtrace"
ANONYMOUS: Final = "anonymous"
CLASSES: Final = (
    TEXT,
    RODATA,
    RELRO,
    DATA,
    BSS,
    HEAP,
    STACK,
    THREAD_STACK,
    ARENA,
    MMAPPED,
    FILE,
    SHARED,
    JIT,
    GUARD,
    RESERVE,
    KERNEL,
    MEMTRACE,
    ANONYMOUS,
)
# Resident pages of these are the page cache's, and can be reclaimed; of data and relro, most are private copies.
FILE_CLASSES: Final = frozenset({FILE, TEXT, RODATA})
STACK_CLASSES: Final = frozenset({STACK, THREAD_STACK})
# What is mapped from a program or library, bss aside.
IMAGE_CLASSES: Final = frozenset({TEXT, RODATA, RELRO, DATA})


@dataclass(frozen=True, slots=True)
class ClassRange:
    """Addresses of one class. ``detail`` says which: a library's name, a thread, a kind of shared memory, or nothing.

    It may hold text from outside (file names, thread names): see ``tracer/report/safe.py``.
    """

    start: int
    end: int
    name: str
    detail: str = ""

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start
