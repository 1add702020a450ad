"""A process of very many VMAs: many_vmas.py COUNT [MIB]; every third page of them is resident, and MIB more in one VMA.

Says ``ready``, and lives until its standard input ends.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

PAGE = mmap.PAGESIZE
NORESERVE = 0x4000


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    count, more = int(sys.argv[1]), int(sys.argv[2]) << 20 if len(sys.argv) > 2 else 0
    kept = mmap.mmap(-1, more, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if more else b""
    for offset in range(0, more, PAGE):
        kept[offset] = 1  # type: ignore[index]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    base = libc.mmap(None, count * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    for page in range(0, count, 3):
        ctypes.memset(base + page * PAGE, 1, 1)
    for page in range(0, count, 2):
        if libc.mprotect(base + page * PAGE, PAGE, mmap.PROT_READ):
            sys.exit("mprotect failed: vm.max_map_count?")
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
