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
from typing import TypeVar

from tracer.errors import KernelError
from tracer.model.classes import ANONYMOUS
from tracer.model.private import PrivateSeries
from tracer.model.regions import occupied, private, totals_by_class
from tracer.model.vma import RssCounters, Snapshot, Vma, VmaUsage
from tracer.model.watch import Look
from tracer.procfs.smaps import estimate_smaps_seconds
from tracer.procfs.snapshot import SnapshotPlan, is_torn
from tracer.procfs.status import ProcessStatus
from tracer.watch.meter import ReadMeter
from tracer.watch.readers import Readers

# A read of smaps or its rollup holds a lock for as long as a large VMA takes.
MAX_SMAPS_SECONDS = 0.1
_MAX_SMAPS_IN_BETWEEN = 0.005
# Estimates for what has no formula of its own, from the same measurements as estimate_smaps_seconds.
_ROLLUP_PER_SMAPS = 0.8
_MAPS_PER_VMA = 0.35e-6
_SCAN_PER_VMA, _SCAN_PER_BYTE = 0.5e-6, 0.003 / (1 << 30)
_LEAST = 20e-6
_TRIES = 3
# Private memory may change while the counters do not (fork, MADV_FREE): so it is read again after so many seconds.
_PRIVATE_MAX_AGE = 10.0
# What a thread (before kernel 6.2) or a CPU (6.2 to 6.15) may hold back from the counters.
_HELD_BACK = 64 * os.sysconf("SC_PAGE_SIZE")


Result = TypeVar("Result")


def maps_seconds(vma_count: int) -> float:
    """How long a read of maps takes, by estimate."""
    return _LEAST + vma_count * _MAPS_PER_VMA


def scan_seconds(vma_count: int, rss: int) -> float:
    """How long the page map of so many VMAs with so many bytes in memory takes, by estimate."""
    return _LEAST + vma_count * _SCAN_PER_VMA + rss * _SCAN_PER_BYTE


@dataclass(frozen=True, slots=True)
class Detail:
    """All VMAs at one moment; ``is_smaps`` says that it tells Private_Dirty, too."""

    seconds: float
    usages: tuple[VmaUsage, ...]
    is_smaps: bool


class Ladder:
    """The looks at one program of one process; after an exec a new one is needed."""

    def __init__(
        self,
        readers: Readers,
        meter: ReadMeter,
        clock: Callable[[], float],
        max_smaps_seconds: float = MAX_SMAPS_SECONDS,
        announce: Callable[[SnapshotPlan], None] = lambda plan: None,
    ) -> None:
        """Takes the first snapshot; raises TargetError and PrivilegeError.

        Smaps is read as a whole if its estimate is within ``max_smaps_seconds``, or if there is nothing else. Where the
        estimate is above MAX_SMAPS_SECONDS, ``announce`` is called before the first snapshot with what will be read.
        """
        self._readers = readers
        self._meter = meter
        self._clock = clock
        self._max_smaps_seconds = max_smaps_seconds
        self._announce = announce
        self._classes = ClassBook(readers)
        self._rollup_works = True
        self._mappings_changed = False
        self._began: float | None = None
        self._private_read = (0.0, RssCounters())
        self.series = PrivateSeries()
        self.edges = 0.0  # seconds that the first look and the last have cost
        self.first = self._look_at_all()
        self.start = self.detail
        self._announce = lambda plan: None
        # The last look will cost what the first did: so much must be left for it.
        meter.reserve(self.edges)

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
        return self._look_at_all()

    def _look_at_all(self) -> Look:
        before = self._meter.spent
        try:
            return self._look_by_snapshot()
        finally:
            self.edges += self._meter.spent - before

    def _look_by_snapshot(self) -> Look:
        for _ in range(_TRIES):
            snapshot, plan = self._snapshot()
            # What is dear to read is not read again because it changed meanwhile.
            if not snapshot.torn or plan.smaps_seconds > MAX_SMAPS_SECONDS:
                break
        self.torn = snapshot.torn
        self._mappings_changed = False
        status = self._detailed = replace(self._readers.status(), counters=snapshot.counters)
        seconds = self._valid_at = self._elapsed()
        self.detail = Detail(seconds, snapshot.usages, snapshot.source == "smaps")
        self._classes.learn(snapshot.usages, again=True)
        return self._make_look(status, seconds, self._refresh_private(status, seconds, at_once=True))

    def _snapshot(self) -> tuple[Snapshot, SnapshotPlan]:
        """All VMAs, read by smaps if that is not too dear."""
        before = self._readers.status()
        vmas = self._measured("maps", 0.0, self._readers.maps)
        plan = self._plan(len(vmas), before.counters.rss)
        if plan.smaps_seconds > MAX_SMAPS_SECONDS:
            self._announce(plan)
        usages = self._smaps(plan.smaps_seconds) if plan.source == "smaps" else self._scan(vmas, plan.rss)
        after = self._readers.status()
        snapshot = Snapshot(0, usages, after.counters, source=plan.source)
        return replace(snapshot, torn=is_torn(snapshot, before, after)), plan

    def _plan(self, vma_count: int, rss: int) -> SnapshotPlan:
        seconds = estimate_smaps_seconds(vma_count, rss)
        use_smaps = seconds <= self._max_smaps_seconds or not self._readers.has_scan
        return SnapshotPlan("smaps" if use_smaps else "pagemap", seconds, vma_count, rss)

    def _maps(self, vma_count: int) -> tuple[Vma, ...]:
        return self._measured("maps", maps_seconds(vma_count), self._readers.maps)

    def _smaps(self, estimate: float) -> tuple[VmaUsage, ...]:
        return self._measured("smaps", estimate, self._readers.smaps)

    def _scan(self, vmas: Sequence[Vma], rss: int) -> tuple[VmaUsage, ...]:
        return self._measured("pagemap", scan_seconds(len(vmas), rss), lambda: self._readers.scan(vmas))

    def _measured(self, name: str, estimate: float, read: Callable[[], Result]) -> Result:
        self._readers.take_cost()
        try:
            return read()
        finally:
            self._meter.record(name, estimate, self._readers.take_cost())

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
        """Seconds since the first snapshot was there."""
        now = self._clock()
        if self._began is None:
            self._began = now
        return now - self._began

    def _refresh_detail(self, status: ProcessStatus, seconds: float) -> None:
        if status.counters == self._detailed.counters and status.vm_size == self._detailed.vm_size:
            self._valid_at = seconds
            return
        smaps = estimate_smaps_seconds(len(self.detail.usages), status.counters.rss)
        most = _MAX_SMAPS_IN_BETWEEN if self._readers.has_scan else MAX_SMAPS_SECONDS
        if self._meter.foresee("smaps", smaps) <= most and self._meter.affords("smaps", smaps):
            self._take(self._smaps(smaps), status, seconds, is_smaps=True)
        elif self._readers.has_scan:
            self._scan_what_changed(status, seconds)

    def _scan_what_changed(self, status: ProcessStatus, seconds: float) -> None:
        vmas: Sequence[Vma] = [usage.vma for usage in self.detail.usages]
        if status.vm_size != self._detailed.vm_size or self._mappings_changed:
            if not self._meter.affords("maps", maps_seconds(len(vmas))):
                return
            vmas = self._maps(len(vmas))
        known = {usage.vma: usage for usage in self.detail.usages}
        stale = [vma for vma in vmas if vma not in known or _may_have_changed(vma, self._detailed, status)]
        stale = [vma for vma in stale if not self._classes.is_hugetlb(vma)]
        in_them = sum(known[vma].rss for vma in stale if vma in known)
        in_them += abs(status.counters.rss - self._detailed.counters.rss)
        if not self._meter.affords("pagemap", scan_seconds(len(stale), in_them)):
            return
        fresh = {usage.vma: usage for usage in self._scan(stale, in_them)}
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
        if self._meter.foresee("smaps_rollup", estimate) > MAX_SMAPS_SECONDS or not self._rollup_works:
            return None
        if not at_once and not self._meter.affords("smaps_rollup", estimate):
            return None
        return self._read_rollup(status, seconds, estimate)

    def _read_rollup(self, status: ProcessStatus, seconds: float, estimate: float) -> int | None:
        try:
            amount = self._measured("smaps_rollup", estimate, self._readers.private)
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
