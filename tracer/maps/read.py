"""Reading one process's mappings from a live /proc or a capture, as cheaply as what is asked for allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tracer.errors import MemtraceError, PrivilegeError, TargetError
from tracer.maps.classes import Classes, classes_of
from tracer.maps.process import ProcessMaps, Reader
from tracer.model.coded import Coded, Numbers
from tracer.procfs.files import read_parts
from tracer.procfs.pagemap import Residency
from tracer.procfs.smaps import estimate_smaps_seconds
from tracer.procfs.smaps_fields import parse_fields
from tracer.procfs.smaps_table import parse_maps_table, parse_smaps_table
from tracer.procfs.snapshot import sums_fit
from tracer.procfs.source import LiveSource, ProcSource
from tracer.procfs.status import ProcessStatus, is_kernel_thread_stat, parse_status
from tracer.procfs.vma_table import PlainFields, VmaTable

_RETRIES = 2
# Above the first the user is told what smaps costs; above the second it is read only on request.
TELL_SECONDS = 0.1
MAX_SECONDS = 1.0

Why = Literal["gone", "permission", "zombie", "kernel thread", "unreadable"]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A process that has no mappings to show, or whose mappings may not be seen."""

    pid: int
    why: Why
    text: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What a view shows: fields of smaps (else maps is enough), classes, exact totals.

    ``quick`` reads page tables instead of smaps; None leaves that to the estimate of what smaps costs.
    """

    smaps: bool = True
    classes: bool = True
    rollup: bool = True
    quick: bool | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A process with memory: ``prefix`` is ``""``, or ``task/TID/`` where the group leader has exited."""

    pid: int
    status: ProcessStatus
    prefix: str = ""


def find_target(source: ProcSource, pid: int) -> Target | Unreadable:
    """The process, or why there is nothing to read."""
    try:
        status = _status(source, pid, "")
        if status.vm_size:
            return Target(pid, status)
        for tid in source.threads(pid):
            prefix = f"task/{tid}/"
            try:
                of_thread = _status(source, pid, prefix)
            except MemtraceError:
                continue
            if of_thread.vm_size and tid != pid:
                return Target(pid, of_thread, prefix)
        if status.kernel_thread or _is_kernel_thread(source, pid):
            text = f"process {pid} ({status.name}) is a thread of the kernel: it has no memory of its own"
            return Unreadable(pid, "kernel thread", text)
        if status.state == "Z":
            text = f"process {pid} ({status.name}) is a zombie: its memory is gone, its parent has yet to reap it"
            return Unreadable(pid, "zombie", text)
        return Unreadable(pid, "unreadable", f"process {pid} ({status.name}) has no memory: it is ending or starting")
    except MemtraceError as error:
        return _unreadable(pid, error)


def estimate_seconds(source: ProcSource, target: Target) -> float:
    """What smaps and smaps_rollup will cost, for which the target may be blocked; 0 for a capture."""
    if not isinstance(source, LiveSource):
        return 0.0
    try:
        vma_count = sum(part.count(b"\n") for part in read_parts(target.pid, target.prefix + "maps"))
    except MemtraceError:
        return 0.0
    return estimate_smaps_seconds(vma_count, 2 * target.status.counters.rss)


def read_process(
    source: ProcSource, target: Target, needs: Needs, tell: Callable[[str], None] = lambda text: None
) -> ProcessMaps | Unreadable:
    """The mappings of a process. ``tell`` gets what the user should know before the target may be blocked.

    A torn reading (``ProcessMaps.torn``) of a process that is cheap to read was repeated twice.
    """
    try:
        reader, retries = _choose(source, target, needs, tell)
        process = _read(source, target, reader, needs)
        while process.torn and retries > 0:
            retries -= 1
            process = _read(source, target, reader, needs)
        return process
    except MemtraceError as error:
        return _unreadable(target.pid, error)


def _choose(source: ProcSource, target: Target, needs: Needs, tell: Callable[[str], None]) -> tuple[Reader, int]:
    if not needs.smaps:
        return "maps", _RETRIES
    if not isinstance(source, LiveSource):
        return _kept_reader(source, target), 0
    if needs.quick:
        return "pagemap", _RETRIES
    seconds = estimate_seconds(source, target)
    if seconds <= TELL_SECONDS:
        return "smaps", _RETRIES
    cost = f"smaps of process {target.pid} takes about {seconds:.1f} s, in which its mmap calls may have to wait"
    if seconds > MAX_SECONDS and needs.quick is None:
        tell(f"{cost}: its page tables are read instead, which gives rss, anonymous and swap (--full reads smaps)")
        return "pagemap", _RETRIES
    tell(f"{cost} (--quick reads its page tables instead)")
    return "smaps", 0


def _kept_reader(source: ProcSource, target: Target) -> Reader:
    """smaps, unless it was left out of the capture for what it would have cost."""
    from tracer.procfs.capture import CaptureSource

    if not isinstance(source, CaptureSource):
        return "smaps"
    smaps, maps = (source.has(target.pid, target.prefix + name) for name in ("smaps", "maps"))
    return "maps" if maps and not smaps else "smaps"


def _read(source: ProcSource, target: Target, reader: Reader, needs: Needs) -> ProcessMaps:
    pid, prefix = target.pid, target.prefix
    before = _status(source, pid, prefix)
    table = read_table(source, pid, prefix, reader)
    rollup = _rollup(source, pid, prefix) if reader == "smaps" and needs.rollup else None
    after = _status(source, pid, prefix)
    if not len(table):
        raise TargetError(f"process {pid} does not exist or has ended")
    torn = is_torn(table, before, after) if isinstance(source, LiveSource) else _was_torn(source, pid)
    found = classes_of(source, pid, table) if needs.classes else Classes(Coded([0] * len(table), [""]))
    notes = []
    if found.not_looked_into:
        notes.append(
            f"class: {found.not_looked_into:,} anonymous VMAs, those with the least memory, were not looked into"
        )
    if prefix:
        notes.append(f"read through thread {prefix.split('/')[1]}: the first thread has exited")
    return ProcessMaps(
        pid,
        command_of(source, pid),
        source.user_name(before.uid),
        reader,
        table,
        found.names,
        len(table),
        found.threads,
        rollup,
        torn,
        tuple(notes),
    )


def _was_torn(source: ProcSource, pid: int) -> bool:
    """What the maker of a capture found: it saw the status before and after."""
    from tracer.procfs.capture import CaptureSource

    return isinstance(source, CaptureSource) and source.process(pid).torn


def read_table(source: ProcSource, pid: int, prefix: str, reader: Reader) -> VmaTable:
    """The VMAs of a process as a table; raises TargetError and PrivilegeError."""
    if reader == "smaps":
        live = isinstance(source, LiveSource)
        return parse_smaps_table(read_parts(pid, prefix + "smaps") if live else source.read(pid, prefix + "smaps"))
    table = parse_maps_table(source.read(pid, prefix + "maps"))
    return _with_residency(pid, table) if reader == "pagemap" else table


def is_torn(table: VmaTable, before: ProcessStatus, after: ProcessStatus) -> bool:
    """True where the VMAs cannot all have been there at once; the rules are those of ``take_snapshot``."""
    if table.overlapping():
        return True
    size = sum(table.lengths()) - _vsyscall(table)
    rss = table.sum("Rss") if "Rss" in table.size_names else None
    return not sums_fit(size, rss, before, after)


def command_of(source: ProcSource, pid: int) -> str:
    """The command line, its arguments separated by blanks, or the name in brackets; foreign text as it is.

    Bytes that are no UTF-8 become surrogates (PEP 383).
    """
    try:
        words = source.read(pid, "cmdline").rstrip(b"\0 ").split(b"\0")
        command = b" ".join(words) or b"[" + source.read(pid, "comm").removesuffix(b"\n") + b"]"
    except (TargetError, PrivilegeError):
        return "?"
    return command.decode("utf-8", "surrogateescape")


def _vsyscall(table: VmaTable) -> int:
    """The size of [vsyscall], which VmSize leaves out. It is the last VMA."""
    if len(table) and table.attributes[len(table) - 1].path == b"[vsyscall]":
        return table.ends[-1] - table.starts[-1]
    return 0


def _with_residency(pid: int, table: VmaTable) -> VmaTable:
    with Residency(pid) as residency:
        usages = residency.usages(table.vmas())
    numbers = Numbers[tuple[int, int, int]]()
    blocks = [numbers[(usage.rss, usage.anonymous, usage.swap)] for usage in usages]
    columns = dict(zip(("Rss", "Anonymous", "Swap"), zip(*numbers, strict=True), strict=True))
    return VmaTable(table.starts, table.ends, table.attributes, PlainFields(columns), blocks)


def _rollup(source: ProcSource, pid: int, prefix: str) -> dict[str, int] | None:
    """The sizes in smaps_rollup (kernel 4.14); None where there is none."""
    try:
        return parse_fields(source.read(pid, prefix + "smaps_rollup")).sizes or None
    except TargetError:
        return None


def _status(source: ProcSource, pid: int, prefix: str) -> ProcessStatus:
    data = source.read(pid, prefix + "status")
    try:
        return parse_status(data)
    except (ValueError, IndexError):
        raise TargetError(f"the status of process {pid} cannot be understood") from None


def _is_kernel_thread(source: ProcSource, pid: int) -> bool:
    try:
        return is_kernel_thread_stat(source.read(pid, "stat"))
    except (ValueError, IndexError):
        return False


def _unreadable(pid: int, error: MemtraceError) -> Unreadable:
    if isinstance(error, PrivilegeError):
        fix = f" ({error.fix})" if error.fix else ""
        return Unreadable(pid, "permission", f"process {pid}: {error.cause}{fix}")
    if isinstance(error, TargetError):
        return Unreadable(pid, "gone", error.cause)
    raise error
