"""Heaps of language runtimes and allocators that always lie at addresses of their own; where a rule may err, none is.

Sources: Go runtime/malloc.go (mallocinit, arena hints), HotSpot memory/universe.cpp and compressedOops (zero-based
heaps end at 4 or 32 GiB), mimalloc src/os.c (mi_os_get_aligned_hint).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tracer.model.class_names import ANONYMOUS, ClassRange
from tracer.model.vma import Vma

GO_HEAP, JAVA_HEAP, MIMALLOC = "go heap", "java heap", "mimalloc"

# The first hint and, a TiB on, the second, which no heap has reached.
_GO_HINTS = (0x00C0 << 32, 0x01C0 << 32)
_MIMALLOC_HINTS = (2 << 40, 30 << 40)
# With compressed pointers, a heap ends where 32 bits, or 32 bits of 8-byte words, end.
_JAVA_ENDS = (4 << 30, 32 << 30)
_PYTHON = re.compile(rb"/(?:lib)?python3[^/]*$")


def may_be_go(vmas: Iterable[Vma]) -> bool:
    """Whether anything is mapped where Go's heap begins; that the program is Go's must be found otherwise."""
    return any(vma.start == _GO_HINTS[0] and not vma.path for vma in vmas)


def runs_python(vmas: Iterable[Vma]) -> bool:
    """Whether CPython is mapped to be executed."""
    return any(vma.is_executable and _PYTHON.search(vma.path) for vma in vmas)


def language_heaps(vmas: Sequence[Vma], *, is_go: bool) -> list[ClassRange]:
    """Where heaps of runtimes lie; what is mapped of a file or may be executed there is not theirs."""
    found: list[ClassRange] = []
    images = {vma.path.rpartition(b"/")[2] for vma in vmas if vma.is_executable and vma.is_file}
    if is_go:
        found.append(ClassRange(*_GO_HINTS, ANONYMOUS, GO_HEAP))
    if any(name.startswith(b"libmimalloc") for name in images):
        found.append(ClassRange(*_MIMALLOC_HINTS, ANONYMOUS, MIMALLOC))
    if b"libjvm.so" in images:
        found += [
            ClassRange(start, end, ANONYMOUS, JAVA_HEAP) for end in _JAVA_ENDS if (start := _run_up_to(vmas, end))
        ]
    return found


def _run_up_to(vmas: Sequence[Vma], end: int) -> int:
    """Where the mappings that end at an address, without a hole, begin; 0 where none does."""
    start = 0
    position = end
    for vma in reversed(vmas):
        if vma.end == position or (position == end and vma.start < end <= vma.end):
            start = position = vma.start
        elif vma.end < position:
            break
    return start
