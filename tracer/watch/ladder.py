"""Looking at a process again and again, each time by the cheapest files that can tell what changed.

Every look reads the counters of status, which costs microseconds and holds nothing up. Only where they moved is more
read, and only as far as the meter affords it:

1. smaps as a whole where that takes no more than 5 ms: it tells everything;
2. else maps where the size changed, then the page map, in small steps, of the VMAs that can have changed; and
   smaps_rollup for the exact sum of private memory, where that takes no more than 100 ms.

Whatever is not affordable is put off: the classes are then as of an earlier look, and private memory follows
RssAnon + VmSwap until it is read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tracer.errors import KernelError
from tracer.model.classes import ANONYMOUS
from tracer.model.private import PrivateSeries
from tracer.model.regions import occupied, private, totals_by_class
from tracer.model.vma import RssCounters, Vma, VmaUsage
from tracer.model.watch import Look
from tracer.procfs.smaps import estimate_smaps_seconds
from tracer.procfs.snapshot import SnapshotPlan
from tracer.procfs.status import ProcessStatus
from tracer.watch.meter import ReadMeter
from tracer.watch.readers import Readers

# A read of smaps holds the lock of a large VMA without a pause.
_MAX_SMAPS_SECONDS = 0.005
_MAX_ROLLUP_SECONDS = 0.1
# Estimates for what has no formula of its own, from the same measurements as estimate_smaps_seconds.
_ROLLUP_PER_SMAPS = 0.8
_MAPS_PER_VMA = 0.35e-6
_SCAN_PER_VMA, _SCAN_PER_BYTE = 0.5e-6, 0.003 / (1 << 30)
_LEAST = 20e-6
# Private memory may change while the counters do not (fork, MADV_FREE): so it is read again after so many seconds.
_PRIVATE_MAX_AGE = 10.0
# What a thread (before kernel 6.2) or a CPU (6.2 to 6.15) may hold back from the counters.
_HELD_BACK = 64 * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Detail:
    """All VMAs at one moment; ``is_smaps`` says that it tells Private_Dirty, too."""

    seconds: float
    usages: tuple[VmaUsage, ...]
    is_smaps: bool


class Ladder:
    """The looks at one program of one process; after an exec a new one is needed."""

    def __init__(
        self, readers: Readers, meter: ReadMeter, clock: Callable[[], float], max_snapshot_seconds: float
    ) -> None:
        """Takes the first snapshot; raises TargetError and PrivilegeError."""
        self._readers = readers
        self._meter = meter
        self._clock = clock
        self._max_snapshot_seconds = max_snapshot_seconds
        self._classes = ClassBook(readers)
        self._rollup_works = True
        self._mappings_changed = False
        self._began = clock()
        self._private_read = (0.0, RssCounters())
        self.series = PrivateSeries()
        self.plan = readers.plan(max_snapshot_seconds)
        self.first = self._look_at_all(self.plan)
        self.start = self.detail
        # The last look will cost what the first did: so much must be left for it.
        meter.reserve(meter.foresee(self.plan.source, self.plan.seconds))

    @property
    def classes(self) -> dict[int, str]:
        """Start addresses of the VMAs seen at the start and now, to their classes."""
        return self._classes.by_start

    def look(self) -> Look:
        """Read what changed, as far as that is affordable. Raises TargetError and PrivilegeError."""
        status = self._readers.status()
        seconds = self._elapsed()
        self._refresh_detail(status, seconds)
        return self._make_look(status, seconds, self._refresh_private(status, seconds))

    def finish(self) -> Look:
        """The last look: a whole snapshot like the first, so that both can be compared."""
        self._meter.reserve(0.0)
        plan = self._readers.plan(self._max_snapshot_seconds)
        if self._readers.has_scan and self.plan.source == "pagemap":
            plan = replace(plan, source="pagemap")
        return self._look_at_all(plan)

    def _look_at_all(self, plan: SnapshotPlan) -> Look:
        with self._meter.measure(plan.source, plan.seconds):
            snapshot = self._readers.snapshot(plan)
        self.torn = snapshot.torn
        self._mappings_changed = False
        status = self._detailed = replace(self._readers.status(), counters=snapshot.counters)
        seconds = self._valid_at = self._elapsed()
        self.detail = Detail(seconds, snapshot.usages, snapshot.source == "smaps")
        self._classes.learn(snapshot.usages, again=True)
        return self._make_look(status, seconds, self._refresh_private(status, seconds, at_once=True))

    def _make_look(self, status: ProcessStatus, seconds: float, exact: int | None) -> Look:
        self.series.add(seconds, status.counters.anon + status.counters.swap, exact)
        return Look(
            seconds=seconds,
            counters=status.counters,
            size=status.vm_size,
            private=self.series.newest(),
            private_is_exact=exact is not None,
            classes=totals_by_class(self.detail.usages, self.classes, occupied),
            detail_age=seconds - self._valid_at,
        )

    def _elapsed(self) -> float:
        return self._clock() - self._began

    def _refresh_detail(self, status: ProcessStatus, seconds: float) -> None:
        if status.counters == self._detailed.counters and status.vm_size == self._detailed.vm_size:
            self._valid_at = seconds
            return
        smaps = estimate_smaps_seconds(len(self.detail.usages), status.counters.rss)
        most = _MAX_SMAPS_SECONDS if self._readers.has_scan else _MAX_ROLLUP_SECONDS
        if self._meter.foresee("smaps", smaps) <= most and self._meter.affords("smaps", smaps):
            with self._meter.measure("smaps", smaps):
                usages = self._readers.smaps()
            self._take(usages, status, seconds, is_smaps=True)
        elif self._readers.has_scan:
            self._scan_what_changed(status, seconds)

    def _scan_what_changed(self, status: ProcessStatus, seconds: float) -> None:
        vmas: Sequence[Vma] = [usage.vma for usage in self.detail.usages]
        maps = _LEAST + len(vmas) * _MAPS_PER_VMA
        if status.vm_size != self._detailed.vm_size or self._mappings_changed:
            if not self._meter.affords("maps", maps):
                return
            with self._meter.measure("maps", maps):
                vmas = self._readers.maps()
        known = {usage.vma: usage for usage in self.detail.usages}
        stale = [vma for vma in vmas if vma not in known or _may_have_changed(vma, self._detailed, status)]
        stale = [vma for vma in stale if not self._classes.is_hugetlb(vma)]
        in_them = sum(known[vma].rss for vma in stale if vma in known)
        in_them += abs(status.counters.rss - self._detailed.counters.rss)
        scan = _LEAST + len(stale) * _SCAN_PER_VMA + in_them * _SCAN_PER_BYTE
        if not self._meter.affords("pagemap", scan):
            return
        with self._meter.measure("pagemap", scan):
            fresh = {usage.vma: usage for usage in self._readers.scan(stale)}
        usages = [fresh.get(vma) or known.get(vma) or VmaUsage(vma, 0) for vma in vmas]
        self._take(usages, status, seconds, is_smaps=False)

    def _take(self, usages: Iterable[VmaUsage], status: ProcessStatus, seconds: float, *, is_smaps: bool) -> None:
        self.detail = Detail(seconds, tuple(usages), is_smaps)
        self._valid_at = seconds
        self._classes.learn(self.detail.usages)
        after = self._readers.status()
        slack = _HELD_BACK * max(status.threads, os.cpu_count() or 1)
        found = sum(usage.rss for usage in self.detail.usages)
        # A mapping that took another's place leaves the size as it was: then the sum gives it away.
        low, high = sorted((status.counters.rss, after.counters.rss))
        self._mappings_changed = not low - slack <= found <= high + slack
        self._detailed = status

    def _refresh_private(self, status: ProcessStatus, seconds: float, *, at_once: bool = False) -> int | None:
        """Private_Dirty + Swap, from what was just read or by smaps_rollup; None where neither is affordable.

        ``at_once`` reads it even if it is not due or the share is used up.
        """
        if self.detail.is_smaps and self.detail.seconds >= seconds:
            self._private_read = (seconds, status.counters)
            return sum(map(private, self.detail.usages))
        read_at, counters = self._private_read
        if not at_once and status.counters == counters and seconds - read_at < _PRIVATE_MAX_AGE:
            return None
        estimate = _ROLLUP_PER_SMAPS * estimate_smaps_seconds(len(self.detail.usages), status.counters.rss)
        if self._meter.foresee("smaps_rollup", estimate) > _MAX_ROLLUP_SECONDS or not self._rollup_works:
            return None
        if not at_once and not self._meter.affords("smaps_rollup", estimate):
            return None
        return self._read_rollup(status, seconds, estimate)

    def _read_rollup(self, status: ProcessStatus, seconds: float, estimate: float) -> int | None:
        try:
            with self._meter.measure("smaps_rollup", estimate):
                amount = self._readers.private()
        except KernelError:
            self._rollup_works = False
            return None
        self._private_read = (seconds, status.counters)
        # What came while it was read belongs half to this look: the counters it is compared with are from before.
        came = self._readers.status().counters
        return amount - (came.anon + came.swap - status.counters.anon - status.counters.swap) // 2


class ClassBook:
    """The classes of the VMAs seen at first and now, each found out when it is new, or has its first pages."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._flags: dict[int, tuple[str, ...]] = {}
        self._had_pages: dict[Vma, bool] = {}
        self._at_first: frozenset[int] = frozenset()
        self.by_start: dict[int, str] = {}

    def is_hugetlb(self, vma: Vma) -> bool:
        """True where the pages are no part of RSS, although the page map shows them."""
        return "ht" in self._flags.get(vma.start, ()) or vma.path.startswith(b"/anon_hugepage")

    def learn(self, usages: Sequence[VmaUsage], *, again: bool = False) -> None:
        """Classify what is new among all the VMAs of a process, or all of them ``again``."""
        now = frozenset(usage.vma.start for usage in usages)
        self._at_first = self._at_first or now
        for usage in usages:
            if usage.flags:
                self._flags[usage.vma.start] = usage.flags
        self._classify(usages, range(len(usages)) if again else list(self._new(usages)))
        self._had_pages = {usage.vma: usage.rss > 0 for usage in usages}
        for start in self.by_start.keys() - now - self._at_first:
            del self.by_start[start]
            self._flags.pop(start, None)

    def _classify(self, usages: Sequence[VmaUsage], wanted: Sequence[int]) -> None:
        """Find the classes of some VMAs; their neighbours are shown, too, for they matter."""
        near = sorted({index for middle in wanted for index in (middle - 1, middle, middle + 1)})
        rows = [
            (usages[index].vma, self._flags.get(usages[index].vma.start, ()))
            for index in near
            if 0 <= index < len(usages)
        ]
        found = self._readers.classify(rows) if rows else {}
        for index in wanted:
            start = usages[index].vma.start
            self.by_start[start] = found[start]

    def _new(self, usages: Sequence[VmaUsage]) -> Iterator[int]:
        """VMAs never seen, and nameless ones whose first pages may tell now what they are for."""
        for index, usage in enumerate(usages):
            had_pages = self._had_pages.get(usage.vma)
            gets_pages = not had_pages and usage.rss and self.by_start.get(usage.vma.start) == ANONYMOUS
            if had_pages is None or gets_pages:
                yield index


def _may_have_changed(vma: Vma, before: ProcessStatus, after: ProcessStatus) -> bool:
    """Whether the counters that moved are of the kind that a VMA holds.

    Anonymous pages and swap lie in private memory that can be written; pages of files and of shared memory where a
    file is behind the VMA (shared anonymous memory has one, too).
    """
    old, new = before.counters, after.counters
    if (old.anon, old.swap) != (new.anon, new.swap) and vma.perms[1:2] == "w" and vma.perms.endswith("p"):
        return True
    return (old.file, old.shmem) != (new.file, new.shmem) and vma.is_file
