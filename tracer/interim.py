"""What a session knows of the stacks while it goes on, as a report: for those who want figures at intervals.

It costs little and disturbs nothing: no look at the target's memory is taken. So it has no ledger and no verdict, does
not know in which class of memory blocks lie, and of direct mappings it takes for resident what was faulted in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from tracer.model.report import Overhead, Report, StackGrowth, StackKind, Verdict, VmaGrowth
from tracer.model.tracker import Tracker
from tracer.model.vma import RssCounters, Vma
from tracer.probes.layout import Totals
from tracer.stacks import StackBook
from tracer.units import human_bytes, human_seconds

# The stacks that hold most; a profile of more would take too long to put together beside tracing.
_MAX_STACKS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What there is so far; ``code`` are the executable VMAs."""

    pid: int
    command: str
    started: datetime
    seconds: float
    rss_start: RssCounters
    rss: RssCounters
    totals: Mapping[int, Totals]
    tracker: Tracker
    code: tuple[Vma, ...]
    probed: tuple[str, ...]
    losses: dict[str, int]
    notes: tuple[str, ...]


def interim_report(found: Findings, book: StackBook) -> Report:
    """The stacks so far, by what they hold."""
    stacks = sorted([*_malloc_stacks(found, book), *_mapped_stacks(found, book)], key=lambda each: -each.bytes)
    grown = found.rss.rss - found.rss_start.rss
    return Report(
        pid=found.pid,
        command=found.command,
        verdict=Verdict("unknown", f"RSS grew {human_bytes(grown)} in {human_seconds(found.seconds)} so far"),
        started=found.started,
        seconds=found.seconds,
        ended="not yet",
        rss_start=found.rss_start,
        rss_end=found.rss,
        classes=(),
        vmas=tuple(VmaGrowth(vma, "", 0, 0) for vma in found.code),
        stacks=tuple(stacks),
        ledger=(),
        probed=found.probed,
        overhead=Overhead(None, 0.0, 0),
        losses=found.losses,
        notes=found.notes,
    )


def _malloc_stacks(found: Findings, book: StackBook) -> Iterator[StackGrowth]:
    by_size = sorted(found.totals.items(), key=lambda item: (item[1].live_bytes, item[1].allocated_bytes), reverse=True)
    for stack, totals in by_size[:_MAX_STACKS]:
        if totals.allocations:
            yield _growth(found, book, stack, "malloc", totals.live_bytes, totals.live_count, totals)


def _mapped_stacks(found: Findings, book: StackBook) -> Iterator[StackGrowth]:
    held: Counter[int] = Counter()
    for range_ in found.tracker.ranges:
        held[range_.origin] += range_.size
    faulted: Counter[int] = Counter()
    for (index, _), amount in found.tracker.faulted.items():
        faulted[index] += amount
    for index, origin in enumerate(found.tracker.origins):
        kind: StackKind = "brk" if origin.kind == "brk" else "mmap"
        if origin.kind == kind:
            size = min(held[index], max(0, faulted[index]))
            totals = Totals(
                origin.mapped_count, origin.mapped_bytes, 0, max(0, origin.mapped_bytes - held[index]), 0, 0
            )
            yield _growth(found, book, origin.stack, kind, size, int(held[index] > 0), totals)


def _growth(
    found: Findings, book: StackBook, stack: int, kind: StackKind, size: int, count: int, totals: Totals
) -> StackGrowth:
    return StackGrowth(
        id=f"{stack:016x}",
        kind=kind,
        bytes=max(0, size),
        count=max(0, count),
        allocated_bytes=totals.allocated_bytes,
        freed_bytes=totals.freed_bytes,
        allocated_count=totals.allocations,
        freed_count=totals.frees,
        rate=size / found.seconds if found.seconds else 0.0,
        oldest=0.0,
        vma_class="",
        complete=book.raw(stack).complete,
        frames=book.quick_frames(stack),
    )
