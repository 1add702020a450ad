"""One consistent view of a process's memory, by the cheapest reader that the kernel has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from tracer.errors import MemtraceError, TargetError
from tracer.model.vma import Snapshot
from tracer.procfs.files import read_of_any_thread
from tracer.procfs.maps import overlapping, read_maps
from tracer.procfs.pagemap import Residency, snapshot_from_pagemap
from tracer.procfs.smaps import estimate_smaps_seconds, read_smaps
from tracer.procfs.status import ProcessStatus, read_status

_RETRIES = 2
_PAGE = os.sysconf("SC_PAGE_SIZE")
# What a thread (before kernel 6.2) or a CPU (6.2 to 6.15) may hold back from the counters.
_HELD_BACK = 64 * _PAGE


@dataclass(frozen=True, slots=True)
class SnapshotPlan:
    """Which reader a snapshot will use, and what smaps would cost, in seconds, for which the target may be blocked."""

    source: Literal["smaps", "pagemap"]
    smaps_seconds: float
    vma_count: int
    rss: int

    @property
    def seconds(self) -> float:
        """What to expect of the chosen reader: maps and PAGEMAP_SCAN take about half as long as smaps."""
        return self.smaps_seconds if self.source == "smaps" else self.smaps_seconds / 2


def plan_snapshot(pid: int, *, max_smaps_seconds: float = 0.1) -> SnapshotPlan:
    """Choose smaps where its estimated cost is within ``max_smaps_seconds``, else PAGEMAP_SCAN where the kernel has it.

    A plan with the source ``smaps`` and more seconds than that says that there is no cheaper way: tell the user.
    Raises TargetError where the process has ended or has no memory, PrivilegeError where it may not be read.
    """
    status = _status_with_memory(pid)
    vma_count = read_of_any_thread(pid, "maps").count(b"\n")
    seconds = estimate_smaps_seconds(vma_count, status.counters.rss)
    use_pagemap = seconds > max_smaps_seconds and _has_scan(pid)
    return SnapshotPlan("pagemap" if use_pagemap else "smaps", seconds, vma_count, status.counters.rss)


def take_snapshot(
    pid: int,
    *,
    max_smaps_seconds: float = 0.1,
    plan: SnapshotPlan | None = None,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> Snapshot:
    """The memory of a process, VMA by VMA, by the reader of ``plan`` (made here unless it is given).

    The counters are read right after the VMAs, as is the clock. The snapshot is ``torn`` where the process changed
    its mappings while they were read, which shows in one of three ways: VMAs overlap; their sizes do not add up to
    a VmSize between the one before and the one after (exact on every kernel; [vsyscall] is no part of it); their
    resident bytes do not add up to an RSS between those before and after, give or take what the kernel may hold back
    from these counters (64 pages for each thread or CPU; kernels since 6.16 hold back nothing, but do not say so).
    A torn snapshot is retried twice, but not where smaps costs more than ``max_smaps_seconds``; the last is returned.

    Raises TargetError where the process has ended or has no memory, PrivilegeError where it may not be read.
    """
    plan = plan or plan_snapshot(pid, max_smaps_seconds=max_smaps_seconds)
    retries = _RETRIES if plan.source == "pagemap" or plan.smaps_seconds <= max_smaps_seconds else 0
    snapshot = _read(pid, plan, clock_ns)
    while snapshot.torn and retries > 0:
        retries -= 1
        snapshot = _read(pid, plan, clock_ns)
    return snapshot


def is_torn(snapshot: Snapshot, before: ProcessStatus, after: ProcessStatus) -> bool:
    """True where the VMAs cannot all have been there at once; the rules are those of ``take_snapshot``."""
    vmas = [usage.vma for usage in snapshot.usages]
    if overlapping(vmas):
        return True
    size = sum(vma.size for vma in vmas if vma.path != b"[vsyscall]")
    return not sums_fit(size, snapshot.rss, before, after)


def sums_fit(size: int, rss: int | None, before: ProcessStatus, after: ProcessStatus) -> bool:
    """True where sums over VMAs (without [vsyscall]) can be those of a moment between two looks at the status.

    ``rss`` is None where it was not read.
    """
    slack = _HELD_BACK * max(after.threads, os.cpu_count() or 1)
    return _between(size, before.vm_size, after.vm_size, 0) and (
        rss is None or _between(rss, before.counters.rss, after.counters.rss, slack)
    )


def _read(pid: int, plan: SnapshotPlan, clock_ns: Callable[[], int]) -> Snapshot:
    before = _status_with_memory(pid)
    if plan.source == "pagemap":
        snapshot = snapshot_from_pagemap(pid, read_maps(pid), before.counters, 0)
    else:
        snapshot = Snapshot(0, read_smaps(pid), before.counters)
    after = _status_with_memory(pid)
    snapshot = replace(snapshot, time_ns=clock_ns(), counters=after.counters)
    return replace(snapshot, torn=is_torn(snapshot, before, after))


def _between(value: int, one: int, other: int, slack: int) -> bool:
    return min(one, other) - slack <= value <= max(one, other) + slack


def _status_with_memory(pid: int) -> ProcessStatus:
    status = read_status(pid)
    if status.kernel_thread:
        raise TargetError(f"process {pid} ({status.name}) is a thread of the kernel: it has no memory of its own")
    if not status.vm_size:
        raise TargetError(f"process {pid} ({status.name}) has ended: what is left of it has no memory")
    return status


def _has_scan(pid: int) -> bool:
    try:
        with Residency(pid) as residency:
            return residency.has_scan
    except MemtraceError:
        return False
