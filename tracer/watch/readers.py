"""The files of /proc that watching reads, behind one interface, so that the rules of reading can be tried without."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from tracer.errors import KernelError, MemtraceError, TargetError
from tracer.model.classes import classify_all
from tracer.model.vma import Vma, VmaUsage
from tracer.model.watch import MemoryLimit
from tracer.procfs.cgroup import read_limits
from tracer.procfs.files import read_file, read_of_any_thread, target_errors, thread_ids
from tracer.procfs.maps import parse_maps
from tracer.procfs.memory import MemoryReader
from tracer.procfs.pagemap import Residency
from tracer.procfs.smaps import parse_smaps
from tracer.procfs.status import ProcessStatus, read_command, read_status

_FIELDS = re.compile(rb"^(Private_Dirty|Swap): +(\d+) kB$", re.MULTILINE)


class Readers(Protocol):
    """Reads one process. Raises TargetError where it has ended, PrivilegeError where it may not be read (any more)."""

    @property
    def has_scan(self) -> bool:
        """Whether the page map can be scanned (kernel 6.7)."""
        ...

    def command(self) -> str:
        """The command line."""
        ...

    def status(self) -> ProcessStatus:
        """The counters: microseconds, and the target never waits for it."""
        ...

    def was_replaced(self) -> bool:
        """True once after the process has called exec."""
        ...

    def maps(self) -> tuple[Vma, ...]:
        """The VMAs."""
        ...

    def scan(self, vmas: Sequence[Vma]) -> tuple[VmaUsage, ...]:
        """RSS, anonymous memory and swap of VMAs, by the page map."""
        ...

    def smaps(self) -> tuple[VmaUsage, ...]:
        """All VMAs with what of them is resident, and whose it is."""
        ...

    def private(self) -> int:
        """Private_Dirty + Swap of the process, by smaps_rollup; raises KernelError where there is none (4.14)."""
        ...

    def take_cost(self) -> float:
        """Seconds of all reads since the last call for which the target may have waited: those in the kernel."""
        ...

    def classify(self, vmas: Iterable[tuple[Vma, tuple[str, ...]]]) -> dict[int, str]:
        """Start addresses to classes."""
        ...

    def limits(self) -> list[MemoryLimit]:
        """What bounds the memory of the process."""
        ...


class ProcReaders:
    """A live process; a context manager's business is ``close``."""

    def __init__(self, pid: int) -> None:
        """Raises TargetError where the process has ended, PrivilegeError where the caller may not read it."""
        self._pid = pid
        self._maps_fd = -1
        self._residency: Residency | None = None
        self._seconds = 0.0
        self._open(_open_maps(pid))

    def _open(self, maps_fd: int) -> None:
        self._maps_fd = maps_fd
        with contextlib.suppress(MemtraceError):
            self._residency = Residency(self._pid)

    @property
    def has_scan(self) -> bool:
        """Whether PAGEMAP_SCAN can be used."""
        return self._residency is not None and self._residency.has_scan

    def command(self) -> str:
        """The command line."""
        return read_command(self._pid)

    def status(self) -> ProcessStatus:
        """The status file; raises TargetError for what has no memory left."""
        status = read_status(self._pid)
        if not status.vm_size:
            raise TargetError(f"process {self._pid} has ended")
        return status

    def was_replaced(self) -> bool:
        """True once after an exec: a descriptor of maps keeps the address space it was opened for, now empty."""
        with target_errors(self._pid, "maps"):
            if os.pread(self._maps_fd, 1, 0):
                return False
        fresh = _open_maps(self._pid)  # raises TargetError where it is no exec but the end
        self.close()
        self._open(fresh)
        return True

    def maps(self) -> tuple[Vma, ...]:
        """The VMAs."""
        with self._timed():
            data = read_of_any_thread(self._pid, "maps")
        return parse_maps(data)

    def scan(self, vmas: Sequence[Vma]) -> tuple[VmaUsage, ...]:
        """The page map, in steps of 4 MiB, between which the target's calls go on."""
        if self._residency is None:
            raise KernelError("the page map of the process cannot be read")
        before = self._residency.kernel_ns
        try:
            return self._residency.usages(vmas)
        finally:
            self._seconds += (self._residency.kernel_ns - before) / 1e9

    def smaps(self) -> tuple[VmaUsage, ...]:
        """The smaps file."""
        with self._timed():
            data = read_of_any_thread(self._pid, "smaps")
        return parse_smaps(data)

    def private(self) -> int:
        """Private_Dirty + Swap by smaps_rollup."""
        with self._timed():
            data = _read_rollup(self._pid)
        return sum(int(size) for _, size in _FIELDS.findall(data)) * 1024

    def take_cost(self) -> float:
        """Time within the kernel; parsing what it gave is memtrace's own."""
        seconds = self._seconds
        self._seconds = 0.0
        return seconds

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - began

    def classify(self, vmas: Iterable[tuple[Vma, tuple[str, ...]]]) -> dict[int, str]:
        """Classes by name, flags and, where it may be read, by what the allocator wrote into the memory."""
        if self._residency is None:
            return classify_all(vmas)
        with MemoryReader(self._pid, self._residency) as memory:
            return classify_all(vmas, memory)

    def limits(self) -> list[MemoryLimit]:
        """Limits of its cgroups, and the host's available memory."""
        return read_limits(self._pid)

    def close(self) -> None:
        """Close the files."""
        if self._maps_fd >= 0:
            os.close(self._maps_fd)
            self._maps_fd = -1
        if self._residency is not None:
            self._residency.close()
            self._residency = None


def _of_any_thread(pid: int, name: str) -> Iterator[str]:
    """The file of the process, then those of its threads."""
    yield name
    for tid in thread_ids(pid):
        yield f"task/{tid}/{name}"


def _open_maps(pid: int) -> int:
    """Open the maps of a process, or of a live thread where the group leader has exited."""
    for name in _of_any_thread(pid, "maps"):
        path = f"/proc/{pid}/{name}"
        try:
            with target_errors(pid, path):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except TargetError:
            continue
        if os.pread(fd, 1, 0):
            return fd
        os.close(fd)
    raise TargetError(f"process {pid} has ended or has no memory of its own")


def _read_rollup(pid: int) -> bytes:
    """The rollup, of a live thread where the group leader has exited (ESRCH then)."""
    for name in _of_any_thread(pid, "smaps_rollup"):
        try:
            data = read_file(pid, name)
        except TargetError:
            continue
        if data:
            return data
    raise KernelError("smaps_rollup is not there", "it came with kernel 4.14")
