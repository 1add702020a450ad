"""What a VMA is for: heap, thread stack, malloc arena, file, ...

What maps and VmFlags say is exact; glibc's arenas, its mmapped chunks and, before kernel 6.7, thread stacks are
recognised by what glibc writes into them, where the memory can be read. A VMA is one class here, although the kernel
may have merged what belongs to several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from tracer.model.vma import Vma

# Size bytes at an address, or None. Should refuse pages that are not resident: reading would bring them in.
ReadMemory = Callable[[int, int], bytes | None]

HEAP: Final = "heap"
STACK: Final = "stack"
THREAD_STACK: Final = "thread stack"
ARENA: Final = "malloc arena"
MMAPPED: Final = "malloc mmapped"
FILE: Final = "file"
SHARED: Final = "shared memory"
JIT: Final = "jit"
GUARD: Final = "guard"
KERNEL: Final = "kernel"
MEMTRACE: Final = "memtrace"
ANONYMOUS: Final = "anonymous"
CLASSES: Final = (HEAP, STACK, THREAD_STACK, ARENA, MMAPPED, FILE, SHARED, JIT, GUARD, KERNEL, MEMTRACE, ANONYMOUS)

# Classes whose pages are a file's, and those that are stacks.
FILE_CLASSES: Final = frozenset({FILE})
STACK_CLASSES: Final = frozenset({STACK, THREAD_STACK})

_PAGE = 4096
# glibc malloc/arena.c: HEAP_MAX_SIZE on 64-bit machines.
_ARENA_SIZE = 64 << 20
# glibc malloc/arena.c, struct _heap_info: ar_ptr, prev, size, mprotect_size.
_HEAP_INFO = Struct("=4Q")
# glibc malloc/malloc.c, struct malloc_chunk: mchunk_prev_size, mchunk_size, whose low bits are flags.
_CHUNK_HEADER_SIZE = 16
_CHUNK_FLAGS, _IS_MMAPPED = 7, 2
# x86-64: struct pthread (2.3 kB) ends a thread's stack, and begins with its own address and, 16 bytes on, again.
_THREAD_BLOCK_SPAN, _SELF_AGAIN = _PAGE, 16


@dataclass(frozen=True, slots=True)
class ClassContext:
    """What is known around a VMA: its neighbours in maps, adjacent or not, and how to read the process's memory."""

    previous: Vma | None = None
    following: Vma | None = None
    read_memory: ReadMemory | None = None


_ALONE = ClassContext()


def classify(vma: Vma, flags: tuple[str, ...] = (), *, context: ClassContext = _ALONE) -> str:
    """The class of a VMA, one of CLASSES; ``flags`` are its VmFlags, where they were read (smaps)."""
    by_name = _class_by_name(vma)
    if by_name is not None:
        return by_name
    if vma.perms[:3] == "---":
        return GUARD
    # VM_GROWSDOWN, and MAP_STACK, which has its own flag (VM_NOHUGEPAGE) since kernel 6.7.
    if "gd" in flags:
        return STACK
    if "nh" in flags and vma.perms.startswith("rw"):
        return THREAD_STACK
    if vma.is_executable:
        return JIT
    if vma.perms != "rw-p":
        return ANONYMOUS
    return _class_of_writable(vma, context)


def classify_all(
    vmas_with_flags: Iterable[tuple[Vma, tuple[str, ...]]], read_memory: ReadMemory | None = None
) -> dict[int, str]:
    """Start addresses to classes, for the VMAs of a process in the order of maps."""
    rows = list(vmas_with_flags)
    classes: dict[int, str] = {}
    for index, (vma, flags) in enumerate(rows):
        context = ClassContext(
            rows[index - 1][0] if index else None,
            rows[index + 1][0] if index + 1 < len(rows) else None,
            read_memory,
        )
        classes[vma.start] = classify(vma, flags, context=context)
    return classes


def _class_by_name(vma: Vma) -> str | None:
    """What maps itself says; None for memory without a name, or with one that its user made up."""
    path = vma.path
    if path.startswith(b"[anon:"):
        return _class_by_anon_name(path)
    if path.startswith(b"["):
        return _class_by_kernel_name(path)
    if path == b"/dev/zero":  # a private mapping of it is anonymous memory; a shared one reads "/dev/zero (deleted)"
        return None
    if path.startswith(b"/anon_hugepage") and vma.perms.endswith("p"):
        return None
    if vma.is_file or path:
        return SHARED if _is_shared_memory(vma) else FILE
    return SHARED if vma.perms.endswith("s") else None


def _class_by_kernel_name(path: bytes) -> str:
    """Classes of the names that the kernel gives (fs/proc/task_mmu.c, get_vma_name; arch/*/ special mappings)."""
    if path == b"[heap]":
        return HEAP
    if path == b"[stack]":
        return STACK
    if path.startswith(b"[stack:"):  # kernels 3.4 to 4.4
        return THREAD_STACK
    if path.startswith(b"[anon_shmem:"):
        return SHARED
    # Where a single-stepped instruction is copied to; it stays after the probe has gone.
    return MEMTRACE if path.startswith(b"[uprobes") else KERNEL


def _class_by_anon_name(path: bytes) -> str | None:
    """Classes of names given by PR_SET_VMA_ANON_NAME; glibc does it with glibc.mem.decorate_maps=1 (2.39)."""
    name = path[len(b"[anon:") :].removesuffix(b"]").strip()
    if name.startswith(b"glibc: malloc arena"):
        return ARENA
    if name == b"glibc: malloc":
        return MMAPPED
    return THREAD_STACK if b"stack" in name else None


def _is_shared_memory(vma: Vma) -> bool:
    if vma.path.startswith((b"/dev/shm/", b"/SYSV", b"/memfd:", b"/dev/zero (deleted)", b"/anon_hugepage")):
        return True
    return not vma.path and vma.perms.endswith("s")


def _class_of_writable(vma: Vma, context: ClassContext) -> str:
    """Classes of private anonymous memory that may be read and written, by what glibc keeps in it."""
    if vma.start % _ARENA_SIZE == 0 and _is_arena(vma, context):
        return ARENA
    if context.read_memory is None:
        return ANONYMOUS
    if _is_mmapped_chunk(vma, context.read_memory):
        return MMAPPED
    if _has_guard(vma, context.previous) and _holds_thread_block(vma, context.read_memory):
        return THREAD_STACK
    return ANONYMOUS


def _is_arena(vma: Vma, context: ClassContext) -> bool:
    """True for the used part of a heap of an arena that is not main_arena.

    It is known by its heap_info, or, where memory cannot be read, by being a 64 MiB pair with the reserve behind it.
    """
    if context.read_memory is None:
        following = context.following
        reserve = following is not None and following.start == vma.end and following.perms[:3] == "---"
        end = following.end if following is not None and reserve and not following.is_file else vma.end
        return (end - vma.start) % _ARENA_SIZE == 0
    head = context.read_memory(vma.start, _HEAP_INFO.size)
    if head is None or len(head) < _HEAP_INFO.size:
        return False
    arena, previous, size, accessible = map(int, _HEAP_INFO.unpack(head))
    # The arena's own state follows the heap_info of its first heap; a further heap points back to the one before.
    in_first_heap = 0 < arena % _ARENA_SIZE < _PAGE
    in_this_heap = arena - arena % _ARENA_SIZE == vma.start
    chained = previous % _ARENA_SIZE == 0 and (previous == 0) == in_this_heap
    return in_first_heap and chained and 0 < size <= accessible <= _ARENA_SIZE and accessible % _PAGE == 0


def _is_mmapped_chunk(vma: Vma, read_memory: ReadMemory) -> bool:
    """True where a chunk that malloc got by mmap begins the VMA.

    Its size is a number of pages up to glibc 2.42, and 16 bytes less from 2.43.
    """
    head = read_memory(vma.start, _CHUNK_HEADER_SIZE)
    if head is None or len(head) < _CHUNK_HEADER_SIZE:
        return False
    word = int.from_bytes(head[8:16], "little")
    size = word & ~_CHUNK_FLAGS
    if word & _CHUNK_FLAGS != _IS_MMAPPED or size % _PAGE not in (0, _PAGE - 16):
        return False
    return 0 < (size + _PAGE - 1) // _PAGE * _PAGE <= vma.size


def _has_guard(vma: Vma, previous: Vma | None) -> bool:
    return previous is not None and previous.end == vma.start and previous.perms == "---p" and not previous.is_file


def _holds_thread_block(vma: Vma, read_memory: ReadMemory) -> bool:
    """True where the last page holds glibc's struct pthread, which the thread pointer points to."""
    span = min(_THREAD_BLOCK_SPAN, vma.size)
    base = vma.end - span
    page = read_memory(base, span)
    if page is None:
        return False
    for offset in range(0, len(page) - _SELF_AGAIN - 8 + 1, _SELF_AGAIN):
        own = (base + offset).to_bytes(8, "little")
        if page[offset : offset + 8] == own and page[offset + _SELF_AGAIN : offset + _SELF_AGAIN + 8] == own:
            return True
    return False
