"""Keeps the kernel's unwind tables in step with the mappings of traced processes.

`UnwindMaps.update` publishes a process's executable mappings at once, with the tables that are known so far;
`build_next` makes one missing table, and may be called from a background thread. A mapping whose table is not there
is marked so, and stacks that come through it say so (STACK_NO_TABLE).
"""

from __future__ import annotations

import os
import struct
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tracer.model.vma import Vma

from .access import MAX_MAPPINGS, UnwindSizes, UnwindWriters, open_mapping, read_memory
from .image import UnwindTableError
from .rules import RULE_FRAME_POINTER, RULE_PENDING, RULE_PERF_TRAMPOLINE
from .space import GRACE_SECONDS, Space
from .tables import ImageTable, TableStore, table_of_file, table_of_memory

MAPPING = struct.Struct("<QQQII")  # struct unwind_mapping
PROCESS = struct.Struct("<IIQ")  # struct unwind_process
MAX_VDSO = 1 << 20
MAX_OPEN_FILES = 256
ADDRESS_MASK = (1 << 64) - 1
VDSO, UPROBES, VSYSCALL = b"[vdso]", b"[uprobes]", b"[vsyscall]"
# CPython 3.12's and 3.13's perf trampoline: sub $8,%rsp; call *%rcx; add $8,%rsp; ret
PERF_TRAMPOLINE = bytes.fromhex("4883ec08ffd14883c408c3")


class ImageState(Enum):
    """What became of an image's table."""

    PENDING = "not built yet"
    READY = "ready"
    NO_TABLE = "no unwind information"
    FULL = "no room for its table"


@dataclass(slots=True)
class _Image:
    key: tuple[object, ...]
    name: bytes
    size: int
    fd: int = -1
    data: bytes = b""
    identity: tuple[int, ...] = ()
    state: ImageState = ImageState.PENDING
    reason: str = ""
    heat: int = 0
    users: int = 0
    rows: tuple[int, int] = (0, 0)
    pages: tuple[int, int] = (0, 0)
    needs: tuple[int, int] = (0, 0)  # rows and pages that there was no room for
    retry_at: float = 0.0
    table: ImageTable | None = None  # once it is in the kernel: without rows and pages

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.data = b""


@dataclass(frozen=True, slots=True)
class ImageReport:
    """One image, for the report: `reasons` counts functions or rows that could not be represented."""

    name: bytes
    state: ImageState
    detail: str
    rows: int
    reasons: Counter[str]


@dataclass(slots=True)
class _Process:
    records: bytes = b""
    first: int = 0
    count: int = 0
    trampoline: int = 0
    mappings: list[tuple[Vma, _Image | None, int]] = field(default_factory=list)  # the rule where there is no image


class UnwindMaps:
    """The tables in the kernel and what they belong to. Safe to use from several threads."""

    def __init__(
        self,
        sizes: UnwindSizes,
        writers: UnwindWriters,
        *,
        store: TableStore | None = None,
        open_file: Callable[[int, Vma], int] = open_mapping,
        read: Callable[[int, int, int], bytes] = read_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.losses: Counter[str] = Counter()
        self._writers = writers
        self._store = store
        self._clock = clock
        self._open_file = open_file
        self._read = read
        self._rows = Space(sizes.rows, clock)
        self._pages = Space(sizes.pages, clock)
        self._places = Space(sizes.mappings, clock)
        self._images: dict[tuple[object, ...], _Image] = {}
        self._processes: dict[int, _Process] = {}
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._open_files = 0

    def update(self, pid: int, vmas: Sequence[Vma]) -> bool:
        """Publish a process's mappings as /proc/PID/maps now states them.

        Returns False where the kernel could not be told (no room now; a later update may succeed). `pid` is the
        process's number in the initial pid namespace for the map, and in ours for /proc: memtrace must run there.
        """
        with self._lock:
            process = self._processes.setdefault(pid, _Process())
            before = process.mappings
            process.mappings = [self._classify(pid, vma) for vma in vmas if self._is_walked(vma)]
            process.trampoline = next((vma.start for vma in vmas if vma.path == UPROBES), 0)
            for _, image, _ in process.mappings:
                if image is not None:
                    image.users += 1
            for _, image, _ in before:
                if image is not None:
                    image.users -= 1
            return self._publish(pid, process)

    def forget(self, pid: int) -> None:
        """The process has ended, or is traced no more."""
        with self._lock:
            process = self._processes.pop(pid, None)
            if process is None:
                return
            self._writers.processes.delete(pid)
            self._places.give(process.first, process.count)
            for _, image, _ in process.mappings:
                if image is not None:
                    image.users -= 1

    def heat(self, pid: int, addresses: Iterable[int]) -> None:
        """Stacks stopped at these addresses for want of a table: build those tables first."""
        with self._lock:
            process = self._processes.get(pid)
            if process is None:
                return
            for address in addresses:
                for vma, image, _ in process.mappings:
                    if image is not None and vma.start <= address < vma.end:
                        image.heat += 1

    @property
    def pending(self) -> int:
        """How many mapped images wait for their table."""
        with self._lock:
            return sum(1 for image in self._images.values() if image.state is ImageState.PENDING and image.users)

    def build_next(self) -> bool:
        """Make the table that is wanted most: hottest first, then the smallest file. False where none is wanted."""
        with self._building:
            with self._lock:
                image = self._most_wanted()
            if image is None:
                return False
            try:
                table = table_of_memory(image.data) if image.data else table_of_file(image.fd, self._store)
            except UnwindTableError as error:
                table, image.reason = None, str(error)
            except (OSError, MemoryError) as error:
                table, image.reason = None, f"cannot be read: {error}"
            with self._lock:
                self._install(image, table)
                if image.state is not ImageState.FULL:
                    self._close(image)
                for pid, process in self._processes.items():
                    if any(used is image for _, used, _ in process.mappings):
                        self._publish(pid, process)
            return True

    def build_all(self) -> None:
        """Make every table that is wanted."""
        while self.build_next():
            pass

    def images(self) -> list[ImageReport]:
        """What is known of every image that was ever mapped and not been replaced."""
        with self._lock:
            return [
                ImageReport(
                    image.name,
                    image.state,
                    image.reason or image.state.value,
                    image.rows[1],
                    Counter(image.table.reasons) if image.table else Counter(),
                )
                for image in self._images.values()
            ]

    @property
    def used(self) -> tuple[int, int, int]:
        """Rows, pages and mappings in use."""
        with self._lock:
            return self._rows.used, self._pages.used, self._places.used

    def close(self) -> None:
        """Close the files of tables that were never made."""
        with self._building, self._lock:
            for image in self._images.values():
                image.close()
            self._images.clear()
            self._processes.clear()

    # All below is called with the lock held.

    @staticmethod
    def _is_walked(vma: Vma) -> bool:
        # In [uprobes] stand copies of single instructions; the address in front, where return probes lead, is known
        # to the walk as the trampoline.
        return vma.is_executable and vma.path not in (UPROBES, VSYSCALL)

    def _classify(self, pid: int, vma: Vma) -> tuple[Vma, _Image | None, int]:
        if vma.is_file:
            return vma, self._file_image(pid, vma), RULE_PENDING
        if vma.path == VDSO:
            return vma, self._vdso_image(pid, vma), RULE_FRAME_POINTER
        if PERF_TRAMPOLINE in self._read(pid, vma.start, 64):
            return vma, None, RULE_PERF_TRAMPOLINE
        return vma, None, RULE_FRAME_POINTER

    def _vdso_image(self, pid: int, vma: Vma) -> _Image | None:
        key = (VDSO, vma.size)
        image = self._images.get(key)
        if image is None:
            data = self._read(pid, vma.start, min(vma.size, MAX_VDSO))
            if not data:
                return None
            image = self._images[key] = _Image(key, VDSO, len(data), data=data)
        return image

    def _file_image(self, pid: int, vma: Vma) -> _Image:
        key = (vma.device, vma.inode)
        image = self._images.get(key)
        # A file that nobody had mapped for a while may be another one of the same number.
        if image is not None and (image.users or self._is_same(pid, vma, image)):
            if image.fd < 0 and image.state is ImageState.PENDING:
                self._open(pid, vma, image)
            return image
        if image is not None:
            self._drop(image)
        image = self._images[key] = _Image(key, vma.path, 0)
        self._open(pid, vma, image)
        return image

    def _open(self, pid: int, vma: Vma, image: _Image) -> None:
        """Open it now, as it may be unmapped by the time its table is made."""
        if self._open_files >= MAX_OPEN_FILES:
            return  # it stays pending; a later update opens it
        try:
            image.fd = self._open_file(pid, vma)
        except OSError as error:
            image.state, image.reason = ImageState.NO_TABLE, f"cannot be opened: {error.strerror}"
            self.losses["images that cannot be opened"] += 1
            return
        self._open_files += 1
        status = os.fstat(image.fd)
        image.size = status.st_size
        image.identity = _identity(status)

    def _is_same(self, pid: int, vma: Vma, image: _Image) -> bool:
        try:
            fd = self._open_file(pid, vma)
        except OSError:
            return False
        try:
            return _identity(os.fstat(fd)) == image.identity
        finally:
            os.close(fd)

    def _most_wanted(self) -> _Image | None:
        wanted = [image for image in self._images.values() if self._is_wanted(image)]
        return min(wanted, key=lambda image: (-image.heat, image.size), default=None)

    def _is_wanted(self, image: _Image) -> bool:
        """It can be read, and if there was no room for its table, there may be now."""
        if not image.users or (not image.data and image.fd < 0):
            return False
        if image.state is not ImageState.FULL:
            return image.state is ImageState.PENDING
        unused = [other for other in self._images.values() if not other.users]
        rows = self._rows.size - self._rows.used + sum(other.rows[1] for other in unused)
        pages = self._pages.size - self._pages.used + sum(other.pages[1] for other in unused)
        return self._clock() >= image.retry_at and image.needs[0] <= rows and image.needs[1] <= pages

    def _install(self, image: _Image, table: ImageTable | None) -> None:
        """Give the table its place and write it."""
        if table is None:
            image.state = ImageState.NO_TABLE
            self.losses["images without unwind information"] += 1
            return
        rows = self._take(self._rows, len(table.rows))
        pages = self._take(self._pages, len(table.pages)) if rows is not None else None
        if rows is None or pages is None:
            if rows is not None:
                self._rows.give(rows, len(table.rows))
            if image.state is not ImageState.FULL:
                self.losses["images without room for their unwind table"] += 1
            image.state, image.needs = ImageState.FULL, (len(table.rows), len(table.pages))
            image.retry_at = self._clock() + GRACE_SECONDS
            return
        self._writers.rows.write(rows, table.rows.tobytes())
        self._writers.pages.write(pages, array("Q", [page + rows for page in table.pages]).tobytes())
        image.rows, image.pages = (rows, len(table.rows)), (pages, len(table.pages))
        image.table = ImageTable(array("Q"), array("Q"), table.origin, table.segments, table.reasons)
        image.state = ImageState.READY

    def _take(self, space: Space, count: int) -> int | None:
        """Room for `count`; at need that of images that nobody maps any more is given up, to be used after a while."""
        place = space.take(count)
        if place is None:
            for image in [image for image in self._images.values() if not image.users]:
                self._drop(image)
            place = space.take(count)
        return place

    def _drop(self, image: _Image) -> None:
        self._rows.give(*image.rows)
        self._pages.give(*image.pages)
        self._close(image)
        del self._images[image.key]

    def _close(self, image: _Image) -> None:
        if image.fd >= 0:
            self._open_files -= 1
        image.close()

    def _publish(self, pid: int, process: _Process) -> bool:
        """Write the mappings to a fresh place and let the process's entry point there: one atomic step for readers."""
        found = list(self._chosen(process.mappings))
        records = b"".join(_record(*mapping) for mapping in found)
        entry = PROCESS.pack(process.first, process.count, process.trampoline)
        if records != process.records or not process.count:
            place = self._places.take(len(found)) if found else 0
            if place is None:
                self.losses["updates of mappings without room"] += 1
                return False
            self._writers.mappings.write(place, records)
            entry = PROCESS.pack(place, len(found), process.trampoline)
        else:
            place = process.first
        try:
            self._writers.processes.set(pid, entry)
        except OSError:
            if place != process.first:
                self._places.give(place, len(found))
            self.losses["processes without room"] += 1
            return False
        if place != process.first or len(found) != process.count:
            self._places.give(process.first, process.count)
        process.records, process.first, process.count = records, place, len(found)
        return True

    def _chosen(self, mappings: list[tuple[Vma, _Image | None, int]]) -> Iterator[tuple[Vma, _Image | None, int]]:
        """All mappings by address; beyond the search's reach those with an image, and of the others the largest."""
        chosen = mappings
        if len(mappings) > MAX_MAPPINGS:
            chosen = sorted(mappings, key=lambda m: (m[1] is None, -m[0].size))[:MAX_MAPPINGS]
            self.losses["mappings beyond 1,024"] += len(mappings) - MAX_MAPPINGS
        yield from sorted(chosen, key=lambda m: m[0].start)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _record(vma: Vma, image: _Image | None, rule: int) -> bytes:
    """A mapping for the kernel; its first page is the rule of all of it where it has no table."""
    size = vma.size
    if image is None:
        return MAPPING.pack(vma.start, size, 0, rule, 0)
    if image.table is None:
        rule = RULE_FRAME_POINTER if image.state is ImageState.NO_TABLE else RULE_PENDING
        return MAPPING.pack(vma.start, size, 0, rule, 0)
    address = _address_of_start(vma, image.table)
    if address is None:
        return MAPPING.pack(vma.start, size, 0, RULE_FRAME_POINTER, 0)
    bias = (vma.start - address + image.table.origin) & ADDRESS_MASK
    return MAPPING.pack(vma.start, size, bias, *image.pages)


def _address_of_start(vma: Vma, table: ImageTable) -> int | None:
    """The image's own address of a mapping's first byte, from the segment that the mapping shows."""
    for segment in table.segments:
        if segment.offset & ~0xFFF <= vma.offset < segment.offset + segment.size:
            return segment.address - segment.offset + vma.offset
    return None
