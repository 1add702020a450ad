"""The memory of another process, read through /proc/PID/mem without stopping it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from bisect import bisect_right
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tracer.procfs.pagemap import Residency

_PAGE = os.sysconf("SC_PAGE_SIZE")
# Pages nearer than this are looked up in one walk over the page tables.
_NEAR = 1 << 20
_IOV_MAX = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
)


class _IoVec(ctypes.Structure):
    """``struct iovec`` (process_vm_readv(2))."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class MemoryReader:
    """Reads a process's memory; a context manager. Never raises: what cannot be read is None.

    The kernel wants ptrace attach rights (proc(5), /proc/PID/mem). Reading a page that was never touched, or that
    is swapped out, would bring it into the target's memory: with a ``residency``, such pages are not read.
    """

    def __init__(self, pid: int, residency: Residency | None = None) -> None:
        """Open the memory of ``pid``; where that is refused, every read gives None."""
        self._pid = pid
        self._residency = residency
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def __call__(self, address: int, size: int) -> bytes | None:
        """``size`` bytes at ``address``; None where not all of them can be read."""
        # The file's offset is signed: nothing of the kernel's half of the address space can be asked for.
        if self._fd < 0 or size < 0 or not 0 <= address < 1 << 63:
            return None
        if self._residency is not None and not self._residency.is_resident(address, address + size):
            return None
        return self._pread(address, size)

    @property
    def is_open(self) -> bool:
        """Whether anything can be read."""
        return self._fd >= 0

    def read_many(self, addresses: Sequence[int], size: int) -> list[bytes | None]:
        """``size`` bytes (1 to a page) at each address, in a few system calls; None where they cannot all be read."""
        found: list[bytes | None] = [None] * len(addresses)
        if self._fd < 0 or not 0 < size <= _PAGE:
            return found
        wanted = self._resident(addresses, size)
        for first in range(0, len(wanted), _IOV_MAX):
            batch = wanted[first : first + _IOV_MAX]
            for index, data in zip(batch, self._read_batch([addresses[index] for index in batch], size), strict=True):
                found[index] = data
        return found

    def _resident(self, addresses: Sequence[int], size: int) -> list[int]:
        """The indices of the addresses that may be read, by one look at each group of neighbouring pages."""
        order = sorted(index for index in range(len(addresses)) if 0 <= addresses[index] < (1 << 63) - _PAGE)
        if self._residency is None:
            return order
        order.sort(key=lambda index: addresses[index])
        wanted: list[int] = []
        group: list[int] = []
        for index in order:
            if group and addresses[index] - addresses[group[-1]] > _NEAR:
                wanted += self._resident_of_group(self._residency, group, addresses, size)
                group = []
            group.append(index)
        if group:
            wanted += self._resident_of_group(self._residency, group, addresses, size)
        return wanted

    def _resident_of_group(
        self, residency: Residency, group: Sequence[int], addresses: Sequence[int], size: int
    ) -> list[int]:
        low, high = addresses[group[0]] & -_PAGE, (addresses[group[-1]] + size + _PAGE - 1) & -_PAGE
        runs = residency.resident_runs(low, high)
        starts = [start for start, _ in runs]
        wanted: list[int] = []
        for index in group:
            at = bisect_right(starts, addresses[index]) - 1
            if at >= 0 and addresses[index] + size <= runs[at][1]:
                wanted.append(index)
        return wanted

    def _read_batch(self, addresses: Sequence[int], size: int) -> list[bytes | None]:
        """By process_vm_readv, which ends at the first address that cannot be read: that one is left out."""
        found: list[bytes | None] = []
        while len(found) < len(addresses):
            rest = addresses[len(found) :]
            buffer = ctypes.create_string_buffer(len(rest) * size)
            local = _IoVec(ctypes.addressof(buffer), len(rest) * size)
            remote = (_IoVec * len(rest))(*(_IoVec(address, size) for address in rest))
            count = _libc.process_vm_readv(self._pid, ctypes.byref(local), 1, remote, len(rest), 0)
            if count < 0 and ctypes.get_errno() not in (errno.EFAULT,):
                # No such call here, or not for this process: its file may still be read.
                return found + [self._pread(address, size) for address in rest]
            whole = max(0, count) // size
            data = memoryview(buffer)
            found += [bytes(data[i * size : (i + 1) * size]) for i in range(whole)]
            if len(found) < len(addresses):
                found.append(None)
        return found

    def _pread(self, address: int, size: int) -> bytes | None:
        try:
            data = os.pread(self._fd, size, address)
        except (OSError, OverflowError):
            return None
        return data if len(data) == size else None

    def close(self) -> None:
        """Give the file back; later reads give None."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
