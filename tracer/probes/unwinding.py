"""Keeps the unwind tables of the target in the kernel: at once what is quick to make, the rest in the background."""

from __future__ import annotations

import mmap
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Self

from tracer.model.vma import Vma
from tracer.probes.maps import KernelMap
from tracer.probes.program import Program
from tracer.unwind.access import ROW_SIZE, BufferWriter, UnwindSizes, UnwindWriters
from tracer.unwind.cache import TableCache
from tracer.unwind.mappings import MAPPING, UnwindMaps

_RETRY_SECONDS = 2.5


class UnwindTables:
    """The unwind tables of one process. Tables that are missing are made in a thread, hottest and smallest first."""

    def __init__(self, program: Program, pid: int, sizes: UnwindSizes) -> None:
        """Map the table arrays into memory. Raises OSError where the kernel refuses that."""
        self._pid = pid
        self._memory: list[tuple[memoryview, mmap.mmap]] = []
        writers = UnwindWriters(
            rows=self._writer(program, "unwind_rows", sizes.rows, ROW_SIZE),
            pages=self._writer(program, "unwind_pages", sizes.pages, ROW_SIZE),
            mappings=self._writer(program, "unwind_mappings", sizes.mappings, MAPPING.size),
            processes=ProcessMap(program.map("unwind_processes")),
        )
        self._maps = UnwindMaps(sizes, writers, store=TableCache.default())
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._build, name="unwind-tables", daemon=True)

    def _writer(self, program: Program, name: str, count: int, size: int) -> BufferWriter:
        length = -(-count * size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(program.map_fd(name), length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        view = memoryview(memory)
        self._memory.append((view, memory))
        return BufferWriter(view, size)

    def start(self, vmas: Sequence[Vma], seconds: float) -> None:
        """Publish the mappings and make tables for up to ``seconds``; the thread goes on with what is left."""
        self._maps.update(self._pid, vmas)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._maps.build_next():
            pass
        self._thread.start()
        self._wanted.set()

    def update(self, vmas: Sequence[Vma]) -> None:
        """Publish the mappings as they are now."""
        self._maps.update(self._pid, vmas)
        self._wanted.set()

    def want(self, addresses: Iterable[int]) -> None:
        """Stacks ended at these addresses for want of a table: make those first."""
        self._maps.heat(self._pid, addresses)

    def losses(self) -> dict[str, int]:
        """What could not be unwound, by reason, and how many images that concerns."""
        return {reason: count for reason, count in self._maps.losses.items() if "without unwind" not in reason}

    def _build(self) -> None:
        while not self._stopping.is_set():
            # Also without being called: what found no room is tried again when the room of old tables is free.
            self._wanted.wait(timeout=_RETRY_SECONDS)
            self._wanted.clear()
            while not self._stopping.is_set() and self._maps.build_next():
                pass

    def close(self) -> None:
        """Stop the thread and unmap the arrays; the kernel's copies stay as long as their maps do."""
        self._stopping.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()
        self._maps.close()
        while self._memory:
            view, memory = self._memory.pop()
            view.release()
            memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProcessMap:
    """The hash unwind_processes."""

    def __init__(self, values: KernelMap) -> None:
        self._values = values

    def set(self, tgid: int, value: bytes) -> None:
        """Insert or replace; raises OSError where the map is full."""
        self._values.put(struct.pack("<I", tgid), value)

    def delete(self, tgid: int) -> None:
        """Remove; a missing entry is no error."""
        self._values.delete(struct.pack("<I", tgid))
