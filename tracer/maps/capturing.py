"""Making a capture: what any view of processes reads, kept as the raw bytes of /proc (``procfs/capture_format``)."""

from __future__ import annotations

import json
import os
import pwd
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from tracer import __version__
from tracer.errors import MemtraceError, PrivilegeError, TargetError, UsageError
from tracer.maps.classes import classes_of
from tracer.maps.read import (
    MAX_SECONDS,
    TELL_SECONDS,
    Target,
    Unreadable,
    estimate_seconds,
    find_target,
    is_torn,
)
from tracer.procfs import capture_format as form
from tracer.procfs.capture_format import CapturedClasses, CapturedProcess, Manifest
from tracer.procfs.smaps_table import parse_maps_table, parse_smaps_table
from tracer.procfs.source import LiveSource
from tracer.procfs.status import parse_status
from tracer.procfs.vma_table import VmaTable

_SYSTEM_FILES = (
    *("meminfo", "vmstat", "zoneinfo", "stat", "uptime", "loadavg", "version", "swaps", "iomem"),
    *("sys/vm/max_map_count", "sys/vm/overcommit_memory", "pressure/memory"),
)
_PROCESS_FILES = ("stat", "statm", "cmdline", "comm", "cgroup", "limits", "oom_score", "oom_score_adj", "exe")
_THREAD_FILES = ("comm", "stat", "status")
# Level 3 packs smaps to a fortieth in a fifth of the time that its reading takes.
_LEVEL = 3
_RETRIES = 2


@dataclass(frozen=True, slots=True)
class Captured:
    """What a capture holds: processes with mappings, without memory, and ``denied``, whose mappings may not be read.

    ``refused`` has the reason for each that was asked for and has no mappings there.
    """

    processes: int
    without_memory: int
    denied: int
    refused: tuple[Unreadable, ...]
    size: int


def write_capture(
    path: Path, pids: Iterable[int] | None, *, force: bool, full: bool, tell: Callable[[str], None]
) -> Captured:
    """Keep these processes (None: all but this one) in a new file that its owner alone may read.

    It is complete, or not there at all. smaps of a process that would take more than a second is left out unless
    ``full`` is set; ``tell`` gets what that and the whole will cost. Raises UsageError where the file cannot be
    made, TargetError where nothing could be kept.
    """
    source = LiveSource()
    chosen = source.pids() if pids is None else list(dict.fromkeys(pids))
    found = [find_target(source, pid) for pid in chosen if pids is not None or pid != os.getpid()]
    targets = [target for target in found if isinstance(target, Target)]
    # A process without memory belongs into a view of all processes; one that is gone does not.
    empty = [row for row in found if isinstance(row, Unreadable) and row.why != "gone"]
    refused = tuple(row for row in found if isinstance(row, Unreadable) and (row.why == "gone" or pids is not None))
    if not targets and not (pids is None and empty):
        return Captured(0, 0, 0, refused, 0)
    left_out = _plan(source, targets, full, tell)
    with _new_file(path, force=force) as file, _archive(file) as archive:
        writer = _Writer(source, archive)
        writer.add_system()
        for target in targets:
            writer.add_process(target, with_smaps=target.pid not in left_out)
        for row in empty:
            writer.add_remains(row.pid)
        writer.add_manifest()
    count = len(targets) - len(writer.missing)
    denied = sum(row.why == "permission" for row in writer.missing)
    refused += tuple(row for row in writer.missing if pids is not None)
    return Captured(count, writer.without_memory, denied, refused, path.stat().st_size)


def _archive(file: IO[bytes]) -> zipfile.ZipFile:
    return zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL)


def _plan(source: LiveSource, targets: list[Target], full: bool, tell: Callable[[str], None]) -> set[int]:
    """The processes of which smaps is left out."""
    seconds = {target.pid: estimate_seconds(source, target) for target in targets}
    left_out = set() if full else {pid for pid, cost in seconds.items() if cost > MAX_SECONDS}
    for pid in sorted(left_out):
        tell(f"smaps of process {pid} would take about {seconds[pid]:.1f} s and is left out (--full keeps it)")
    cost = sum(cost for pid, cost in seconds.items() if pid not in left_out)
    if cost > TELL_SECONDS:
        tell(f"reading takes about {cost:.1f} s; the mmap calls of each process may have to wait while it is read")
    return left_out


class _Writer:
    """Puts processes into an archive, and keeps account for the manifest."""

    def __init__(self, source: LiveSource, archive: zipfile.ZipFile) -> None:
        self._source = source
        self._archive = archive
        self._processes: dict[int, CapturedProcess] = {}
        self._users: dict[int, str] = {}
        self._refused: dict[str, str] = {}
        self.missing: list[Unreadable] = []
        self.without_memory = 0

    def add_system(self) -> None:
        """Keep files of no single process."""
        for name in _SYSTEM_FILES:
            with suppress(OSError):
                self._add(f"system/{name}", self._source.read_system(name))

    def add_process(self, target: Target, *, with_smaps: bool) -> None:
        """Keep a process that has memory."""
        pid, prefix = target.pid, target.prefix
        self._refused = {}
        torn, table = False, None
        for attempt in range(_RETRIES + 1):
            before = self._read(pid, prefix + "status")
            maps = self._read(pid, prefix + "maps")
            smaps = self._read(pid, prefix + "smaps") if with_smaps else None
            rollup = self._read(pid, prefix + "smaps_rollup") if with_smaps else None
            status = self._read(pid, prefix + "status")
            table = _table(smaps, maps)
            torn = _is_torn(table, before, status)
            if not torn or attempt == _RETRIES:
                break
        if maps is None:
            reason = self._refused.get(prefix + "maps")
            self.missing.append(_why_not(pid, reason))
            if reason == form.GONE:
                return
        files = {"status": status, "maps": maps, "smaps": smaps, "smaps_rollup": rollup}
        self._add_files(pid, {prefix + name: data for name, data in files.items()})
        if prefix:
            self._add_files(pid, {name: self._read(pid, name) for name in files if name != "smaps" or with_smaps})
        self._add_rest(pid, {prefix + "status"})
        if table is not None:
            self._add_classes(pid, table)
        self._end_process(pid, status, torn)

    def add_remains(self, pid: int) -> None:
        """Keep what there is of a zombie, or of a thread of the kernel."""
        self._refused = {}
        status = self._read(pid, "status")
        if status is None:
            return
        self.without_memory += 1
        self._add_files(pid, {"status": status})
        self._add_rest(pid, set())
        self._end_process(pid, status, False)

    def add_manifest(self) -> None:
        """Close the capture."""
        system = os.uname()
        manifest = Manifest(
            memtrace=__version__,
            kernel=system.release,
            machine=system.machine,
            host=system.nodename,
            time=datetime.now().astimezone().isoformat(timespec="seconds"),
            page_size=os.sysconf("SC_PAGE_SIZE"),
            clock_ticks=os.sysconf("SC_CLK_TCK"),
            cpus=os.cpu_count() or 1,
            users=self._users,
            processes=self._processes,
        )
        self._add_document(form.MANIFEST, form.manifest_document(manifest))

    def _add_rest(self, pid: int, kept: set[str]) -> None:
        self._add_files(pid, {name: self._read(pid, name) for name in _PROCESS_FILES})
        with suppress(MemtraceError):
            for tid in self._source.threads(pid):
                names = [f"task/{tid}/{name}" for name in _THREAD_FILES]
                self._add_files(pid, {name: self._read(pid, name) for name in names if name not in kept})

    def _add_classes(self, pid: int, table: VmaTable) -> None:
        found = classes_of(self._source, pid, table)
        threads = {start: tuple((row.tid, row.name) for row in rows) for start, rows in found.threads.items()}
        classes = CapturedClasses(tuple(found.names.values), tuple(found.names.ids), threads)
        self._add_document(f"proc/{pid}/{form.CLASSES}", form.classes_document(classes))

    def _end_process(self, pid: int, status: bytes | None, torn: bool) -> None:
        self._processes[pid] = CapturedProcess(torn, self._refused)
        with suppress(ValueError, IndexError):
            for uid in _uids(status or b""):
                with suppress(KeyError):
                    self._users.setdefault(uid, pwd.getpwuid(uid).pw_name)

    def _read(self, pid: int, name: str) -> bytes | None:
        try:
            data = self._source.read(pid, name)
        except PrivilegeError:
            self._refused[name] = form.NO_PERMISSION
        except (TargetError, OSError):  # an OSError: what only some kernels or processes have
            self._refused[name] = form.GONE
        else:
            self._refused.pop(name, None)
            return data
        return None

    def _add_files(self, pid: int, files: dict[str, bytes | None]) -> None:
        for name, data in files.items():
            if data is not None:
                self._add(f"proc/{pid}/{name}", data)

    def _add_document(self, name: str, document: dict[str, Any]) -> None:
        self._add(name, json.dumps(document).encode())

    def _add(self, name: str, data: bytes) -> None:
        self._archive.writestr(name, data)


def _table(smaps: bytes | None, maps: bytes | None) -> VmaTable | None:
    if smaps is not None:
        return parse_smaps_table(smaps)
    return None if maps is None else parse_maps_table(maps)


def _is_torn(table: VmaTable | None, before: bytes | None, after: bytes | None) -> bool:
    if table is None or before is None or after is None:
        return False
    return is_torn(table, parse_status(before), parse_status(after))


def _uids(status: bytes) -> set[int]:
    line = next(line for line in [*status.split(b"\n"), b"Uid:"] if line.startswith(b"Uid:"))
    return {int(word) for word in line.split()[1:]}


def _why_not(pid: int, reason: str | None) -> Unreadable:
    if reason == form.NO_PERMISSION:
        return Unreadable(pid, "permission", f"process {pid}: no permission to read its maps (run memtrace with sudo)")
    return Unreadable(pid, "gone", f"process {pid} does not exist or has ended")


@contextmanager
def _new_file(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path``, mode 0600, that takes its name at the end. Raises UsageError, MemtraceError."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory", "name a file")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} exists", "choose another name, or replace it with --force")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file", "name a file")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "choose another place") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        if force:
            os.replace(name, path)
        else:
            os.link(name, path)  # unlike rename, fails where the name is taken
    except OSError as error:
        raise MemtraceError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
