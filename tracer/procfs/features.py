"""Tries which of the newer readers of a process's memory this kernel has, on this very process.

Sources: proc(5), Documentation/admin-guide/mm/pagemap.rst, include/uapi/linux/fs.h and prctl.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct

from tracer.errors import KernelError
from tracer.model.health import Outcome, tried
from tracer.procfs.files import read_file
from tracer.procfs.maps import read_maps
from tracer.procfs.pagemap import Residency
from tracer.procfs.rollup import parse_rollup

ROLLUP, PAGEMAP, PROCMAP, VMA_NAMES = "smaps_rollup", "PAGEMAP_SCAN", "PROCMAP_QUERY", "names of mappings"
MAP_FILES, MEMORY = "map_files", "/proc/PID/mem"

# struct procmap_query, 104 bytes: size, flags, address, then what is answered (start, end, ...).
_PROCMAP_QUERY = 3 << 30 | 104 << 16 | ord("f") << 8 | 17
_QUERY = struct.Struct("<3Q2Q")
_PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 0x53564D41, 0
_NAME = b"memtrace"


def proc_features() -> dict[str, Outcome]:
    """What is there, by name. Needs no rights, but for map_files."""
    return {
        ROLLUP: tried(_rollup),
        PAGEMAP: tried(_pagemap_scan),
        PROCMAP: tried(_procmap_query),
        VMA_NAMES: tried(_vma_names),
        MAP_FILES: tried(_map_files),
        MEMORY: tried(_memory),
    }


def _rollup() -> str:
    if parse_rollup(read_file(os.getpid(), "smaps_rollup")) is None:
        raise KernelError("it is empty")
    return ""


def _pagemap_scan() -> str:
    with Residency(os.getpid()) as residency:
        if not residency.has_scan:
            raise KernelError("the kernel does not know this ioctl")
    return ""


def _procmap_query() -> str:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        address = _address_of(page)
        query = bytearray(104)
        _QUERY.pack_into(query, 0, len(query), 0, address, 0, 0)
        with open("/proc/self/maps", "rb") as maps:
            fcntl.ioctl(maps.fileno(), _PROCMAP_QUERY, query)
        _, _, _, start, end = _QUERY.unpack_from(query)
        if not start <= address < end:
            raise KernelError("it answers with another mapping")
    return ""


def _vma_names() -> str:
    """Name a page of our own, and see whether maps tells."""
    with mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        libc = ctypes.CDLL(None, use_errno=True)
        name = ctypes.create_string_buffer(_NAME)
        arguments = (_PR_SET_VMA_ANON_NAME, _address_of(page), mmap.PAGESIZE, ctypes.addressof(name))
        if libc.prctl(_PR_SET_VMA, *map(ctypes.c_ulong, arguments)) != 0:
            raise KernelError("the kernel was built without CONFIG_ANON_VMA_NAME, or is older than 5.17")
        if b"[anon:" + _NAME + b"]" not in read_file(os.getpid(), "maps"):
            raise KernelError("maps does not show them")
    return ""


def _map_files() -> str:
    mapped = next((vma for vma in read_maps(os.getpid()) if vma.is_file and vma.path.startswith(b"/")), None)
    if mapped is None:
        raise KernelError("this process maps no file")
    os.close(os.open(f"/proc/self/map_files/{mapped.start:x}-{mapped.end:x}", os.O_RDONLY | os.O_CLOEXEC))
    return ""


def _memory() -> str:
    text = ctypes.create_string_buffer(_NAME)
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        if os.pread(memory.fileno(), len(_NAME), ctypes.addressof(text)) != _NAME:
            raise KernelError("it reads as something else")
    return ""


def _address_of(page: mmap.mmap) -> int:
    cell = ctypes.c_char.from_buffer(page)
    address = ctypes.addressof(cell)
    del cell  # else the mapping could not be closed
    return address
