"""The class of a VMA as far as its line in maps tells it: by name, permissions and kind, without its neighbours.

Names: fs/proc/task_mmu.c (get_vma_name), mm/shmem.c, ipc/shm.c, mm/memfd.c, and the special mappings of arch/.
"""

from __future__ import annotations

import re

from tracer.model.class_names import (
    ANONYMOUS,
    ARENA,
    BSS,
    FILE,
    GUARD,
    HEAP,
    JIT,
    KERNEL,
    MEMTRACE,
    MMAPPED,
    RESERVE,
    SHARED,
    STACK,
    TEXT,
    THREAD_STACK,
)
from tracer.model.vma import Vma

_HUGE_PAGES = "huge pages"
# Up to this size, memory that may not be accessed is there to be run into; beyond, to be used later.
SMALL_GUARD = 64 << 10
# By PR_SET_VMA_ANON_NAME; glibc does it with the tunable glibc.mem.decorate_maps=1 (2.39).
_GLIBC_STACK = re.compile(r"glibc: pthread (?:user )?stack: (\d+)")


def class_by_line(vma: Vma, flags: tuple[str, ...] = ()) -> tuple[str, str]:
    """Class and detail of a VMA by what its line in maps, and its VmFlags where known, say."""
    named = _class_by_name(vma)
    if named is not None:
        return named
    if is_inaccessible(vma):
        return (GUARD if vma.size <= SMALL_GUARD else RESERVE), ""
    # VM_GROWSDOWN is of the main stack, or of a mapping made with MAP_GROWSDOWN.
    if "gd" in flags:
        return STACK, "grows down"
    return (JIT if vma.is_executable else ANONYMOUS), (_HUGE_PAGES if vma.path.startswith(b"/anon_h") else "")


def is_inaccessible(vma: Vma) -> bool:
    """True for PROT_NONE."""
    return vma.perms[:3] == "---"


def is_unnamed(vma: Vma) -> bool:
    """True for private anonymous memory to which nobody gave a name: what it is for, its content may tell."""
    return vma.perms.endswith("p") and _is_nameless(vma.path)


def base_name(path: bytes) -> str:
    """The last part of a path, with the kernel's escapes and remarks (`` (deleted)``); undecodable bytes escaped."""
    return path.rpartition(b"/")[2].decode("utf-8", "backslashreplace")


def _is_nameless(path: bytes) -> bool:
    # A private mapping of /dev/zero is anonymous memory; a shared one reads "/dev/zero (deleted)".
    return not path or path == b"/dev/zero" or path.startswith(b"/anon_hugepage")


def _class_by_name(vma: Vma) -> tuple[str, str] | None:
    path = vma.path
    if path.startswith(b"[anon:"):
        return _class_by_anon_name(vma, path[len(b"[anon:") :].removesuffix(b"]").decode("utf-8", "backslashreplace"))
    if path.startswith(b"["):
        return _class_by_kernel_name(path)
    if vma.perms.endswith("p") and _is_nameless(path):
        return None
    kind = shared_kind(vma)
    if kind is not None:
        return SHARED, kind
    return (TEXT if vma.is_executable else FILE), base_name(path)


def _class_by_kernel_name(path: bytes) -> tuple[str, str]:
    name = path.strip(b"[]").decode("utf-8", "backslashreplace")
    if path == b"[heap]":
        return HEAP, ""
    if path == b"[stack]":
        return STACK, ""
    if path.startswith(b"[stack:"):  # kernels 3.4 to 4.4
        return THREAD_STACK, f"tid {name.removeprefix('stack:')}"
    if path.startswith(b"[anon_shmem:"):
        return SHARED, name.removeprefix("anon_shmem:")
    # Where a single-stepped instruction is copied to; it stays after the probe has gone.
    return (MEMTRACE if path.startswith(b"[uprobes") else KERNEL), name


def _class_by_anon_name(vma: Vma, name: str) -> tuple[str, str]:
    name = name.strip()
    if is_inaccessible(vma):
        return (GUARD if vma.size <= SMALL_GUARD else RESERVE), name
    if name.startswith("glibc: malloc arena"):
        return ARENA, ""
    if name == "glibc: malloc":
        return MMAPPED, ""
    if name.startswith("glibc: .bss ") or name == ".bss":
        return BSS, name.rpartition("/")[2] if "/" in name else ""
    if stack := _GLIBC_STACK.match(name):
        return THREAD_STACK, f"tid {stack[1]}"
    if "stack" in name:
        return THREAD_STACK, "unused" if name == "glibc: unused stack" else name
    return (JIT if vma.is_executable else ANONYMOUS), name


def shared_kind(vma: Vma) -> str | None:
    """Which kind of shared memory a VMA is, None where it is none: a file of a disk is not, however it is mapped."""
    path = vma.path
    if path.startswith(b"/SYSV"):
        return f"SysV shmid {vma.inode}"
    if path.startswith(b"/memfd:"):
        return path[1:].removesuffix(b" (deleted)").decode("utf-8", "backslashreplace")
    if path.startswith(b"/dev/shm/"):
        return path.decode("utf-8", "backslashreplace")
    if not vma.perms.endswith("s"):
        return None
    if path.startswith(b"/anon_hugepage"):
        return f"shared anonymous, {_HUGE_PAGES}"
    return "shared anonymous" if not path or path.startswith(b"/dev/zero (deleted)") else None
