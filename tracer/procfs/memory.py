"""The memory of another process, read through /proc/PID/mem without stopping it."""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import Self

from tracer.procfs.pagemap import Residency


class MemoryReader:
    """Reads a process's memory; a context manager. Never raises: what cannot be read is None.

    The kernel wants ptrace attach rights (proc(5), /proc/PID/mem). Reading a page that was never touched, or that
    is swapped out, would bring it into the target's memory: with a ``residency``, such pages are not read.
    """

    def __init__(self, pid: int, residency: Residency | None = None) -> None:
        """Open the memory of ``pid``; where that is refused, every read gives None."""
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
