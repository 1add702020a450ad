"""Puts a session's findings together into the report: ledger, stacks, verdict and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from tracer.heap.watch import HeapWatch
from tracer.model.blocks import Blocks
from tracer.model.faultowners import Allocating, match_faults
from tracer.model.history import History
from tracer.model.ledger import Books, close_books
from tracer.model.rates import Trend
from tracer.model.report import HeapInside, Overhead, Report, RssMove, RssSource, Sampling, StackGrowth, StackKind
from tracer.model.resident import ResidentPages
from tracer.model.selfcheck import discrepancy
from tracer.model.survival import Survivors, Window, estimate_survivors
from tracer.model.tracker import Tracker
from tracer.model.verdict import Findings, judge
from tracer.model.vma import Snapshot
from tracer.probes.layout import Totals
from tracer.stacks import StackBook
from tracer.units import human_bytes, human_seconds, percent, plural

_NO_TOTALS = Totals(0, 0, 0, 0, 0, 0)
# From this share of incomplete stacks on, the report says so at its foot.
_INCOMPLETE_SHARE = 0.02
_UNTRACKED_NAMED = 3
# From this share of page faults that were given another's stack, the report says so.
_SHARED_STACKS = 0.5
# So many calls of a stack tell whether its blocks come and go.
_ENOUGH = 20
_STEPS_TOLD = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a session gathered, before it is interpreted."""

    pid: int
    command: str
    started: datetime
    seconds: float
    ended: str
    start: Snapshot
    end: Snapshot
    start_classes: Mapping[int, str]
    classes: Mapping[int, str]
    tracker: Tracker
    history: History
    totals: Mapping[int, Totals]
    blocks: Blocks
    resident: ResidentPages
    probed: tuple[str, ...]
    counters: Mapping[str, int]
    losses: dict[str, int]
    notes: list[str]
    overhead: Overhead
    rss_source: RssSource = "rss-stat"
    changes_complete: bool = False
    heap: HeapWatch | None = None
    sampling: Sampling = field(default_factory=Sampling)
    # Where the malloc probes were off for a time: the windows in which they were in, and the blocks from before a gap.
    windows: tuple[Window, ...] = ()
    unverified: Blocks | None = None
    verified: Blocks | None = None
    fault_stacks_sampled: bool = False


def assemble(evidence: Evidence, book: StackBook) -> Report:
    """Interpret what was gathered; of the target, nothing is read any more."""
    survivors, owners = _after_gaps(evidence, book)
    books = close_books(
        evidence.start,
        evidence.end,
        evidence.classes,
        evidence.start_classes,
        evidence.tracker,
        evidence.blocks,
        evidence.resident,
        allocators_traced=bool(evidence.probed),
        faults_are_estimates=evidence.rss_source == "faults",
        survivors=survivors,
        owners=owners,
        start_heap=evidence.heap.start_shares if evidence.heap else None,
        end_heap=evidence.heap.end_shares if evidence.heap else None,
        fault_stacks_sampled=evidence.fault_stacks_sampled,
    )
    heap = _heap(evidence, books)
    stacks = _stacks(evidence, books, book)
    outlook = evidence.history.rss_outlook(evidence.seconds, evidence.end.counters.rss)
    findings = Findings(
        rss_start=evidence.start.counters.rss,
        growth=evidence.end.counters.rss - evidence.start.counters.rss,
        seconds=evidence.seconds,
        outlook=outlook,
        ledger=books.rows,
        stacks=stacks,
        heap=heap,
    )
    report = Report(
        pid=evidence.pid,
        command=evidence.command,
        verdict=judge(findings),
        started=evidence.started,
        seconds=evidence.seconds,
        ended=evidence.ended,
        rss_start=evidence.start.counters,
        rss_end=evidence.end.counters,
        classes=books.classes,
        vmas=books.vmas,
        stacks=stacks,
        ledger=books.rows,
        probed=evidence.probed,
        rate=outlook.whole,
        heap=heap,
        rss_source=evidence.rss_source,
        changes=_changes(evidence.tracker) if evidence.rss_source == "rss-stat" else (),
        changes_complete=evidence.changes_complete,
        sampling=evidence.sampling,
        overhead=evidence.overhead,
        losses=evidence.losses,
        notes=(*evidence.notes, *_remarks(evidence, books, stacks, book)),
    )
    off = discrepancy(report)
    return replace(report, notes=(off, *report.notes)) if off else report


def _changes(tracker: Tracker) -> tuple[RssMove, ...]:
    """What the kernel told of RSS, by cause and member, the largest first."""
    moved: dict[tuple[str, str], list[int]] = {}
    for (member, cause, went), amount in tracker.rss_by_cause.items():
        moved.setdefault((cause, member), [0, 0])[went] += amount
    rows = [RssMove(cause, member, grew, shrank) for (cause, member), (grew, shrank) in moved.items()]
    return tuple(sorted(rows, key=lambda row: (row.shrank - row.grew, row.cause, row.member)))


def _heap(evidence: Evidence, books: Books) -> HeapInside | None:
    if evidence.heap is None:
        return None
    kept = sum(row.bytes for row in books.rows if row.cause == "kept-by-allocator")
    placed = {
        usage.vma.start: usage.rss
        for usage in evidence.end.usages
        if evidence.blocks.within(usage.vma.start, usage.vma.end)
    }
    return evidence.heap.inside([name.partition(" in /")[0] for name in evidence.probed], kept, sum(placed.values()))


def _after_gaps(evidence: Evidence, book: StackBook) -> tuple[Survivors | None, dict[int, int | None]]:
    """What probably lives, and whose page faults are whose, where the malloc probes were off for a time."""
    if evidence.unverified is None:
        return None, {}
    late = {stack: totals.late_frees for stack, totals in evidence.totals.items()}
    verified = evidence.verified if evidence.verified is not None else Blocks([], [], [], [])
    passing = {stack for stack, totals in evidence.totals.items() if _comes_and_goes(totals)}
    survivors = estimate_survivors(evidence.unverified, verified, late, evidence.windows, evidence.end.time_ns, passing)
    known = {stack: Allocating(book.raw(stack).ips, stack in passing) for stack in evidence.totals}
    faulting = {stack for (_, stack), amount in evidence.tracker.faulted.items() if amount > 0}
    return survivors, match_faults({stack: book.raw(stack).ips for stack in faulting}, known, book.function_at)


def _comes_and_goes(totals: Totals) -> bool:
    return totals.sampled >= _ENOUGH and totals.frees >= totals.allocations / 2


def _stacks(evidence: Evidence, books: Books, book: StackBook) -> tuple[StackGrowth, ...]:
    stacks = [*_malloc_stacks(evidence, books, book), *_mapped_stacks(evidence, books, book)]
    stacks += _fault_stacks(evidence, books, book)
    return tuple(sorted(stacks, key=lambda stack: (-stack.held, stack.kind, stack.id)))


def _malloc_stacks(evidence: Evidence, books: Books, book: StackBook) -> list[StackGrowth]:
    blocks = evidence.blocks
    everywhere = range(len(blocks))
    live = blocks.bytes_by_stack(everywhere)
    counts = blocks.count_by_stack()
    oldest = blocks.oldest_by_stack()
    ranges = [
        (usage.vma.start, usage.vma.end, evidence.classes.get(usage.vma.start, "anonymous"))
        for usage in evidence.end.usages
    ]
    classes = blocks.class_by_stack(ranges)
    survival = _survival(evidence)
    errors = blocks.error_by_stack()
    found = []
    unverified = {
        stack: size for (cause, stack), size in books.resident_by_stack.items() if cause == "unverified" and size
    }
    placed = {row.stack: row.vma_class for row in reversed(books.rows) if row.cause == "unverified"}
    for stack in {**live, **unverified}:
        size = live.get(stack, 0)
        totals = evidence.totals.get(stack, _NO_TOTALS)
        freed_share = totals.freed_bytes / totals.allocated_bytes if totals.allocated_bytes else 0.0
        found.append(
            _growth(
                evidence,
                book,
                stack,
                "malloc",
                size,
                counts.get(stack, 0),
                totals,
                oldest.get(stack, 0),
                classes.get(stack) or placed.get(f"{stack:016x}") or "anonymous",
                # Of stacks that were seen in windows only, it is not known how they went.
                "unknown" if stack in unverified else evidence.history.trend_of_stack(stack, size, freed_share),
                survival.get(stack),
                errors.get(stack, 0),
                unverified.get(stack, 0),
            )
        )
    return found


def _mapped_stacks(evidence: Evidence, books: Books, book: StackBook) -> list[StackGrowth]:
    mapped = evidence.tracker.origins
    held: dict[int, list[int]] = {}
    for range_ in evidence.tracker.ranges:
        held.setdefault(range_.origin, []).append(range_.size)
    classes = {row.stack: row.vma_class for row in reversed(books.rows) if row.cause == "mapped"}
    found = []
    for index, origin in enumerate(mapped):
        if origin.kind not in ("mmap", "brk") or index not in held:
            continue
        still = sum(held[index])
        count = evidence.tracker.mappings(index)
        totals = Totals(
            origin.mapped_count,
            origin.mapped_bytes,
            max(0, origin.mapped_count - count),
            max(0, origin.mapped_bytes - still),
            0,
            0,
        )
        kind: StackKind = "brk" if origin.kind == "brk" else "mmap"
        resident = books.resident_by_stack.get(("mapped", index), 0)
        vma_class = classes.get(f"{origin.stack:016x}", "heap" if kind == "brk" else "anonymous")
        found.append(_growth(evidence, book, origin.stack, kind, resident, count, totals, origin.first_ns, vma_class))
    return found


def _fault_stacks(evidence: Evidence, books: Books, book: StackBook) -> list[StackGrowth]:
    classes = {row.stack: row.vma_class for row in reversed(books.rows) if row.cause == "faulted"}
    return [
        _growth(
            evidence,
            book,
            stack,
            "fault",
            amount,
            0,
            Totals(0, amount, 0, 0, 0, 0),
            0,
            classes.get(f"{stack:016x}", "anonymous"),
        )
        for (cause, stack), amount in books.resident_by_stack.items()
        if cause == "faulted" and amount > 0
    ]


def _growth(
    evidence: Evidence,
    book: StackBook,
    stack: int,
    kind: StackKind,
    size: int,
    count: int,
    totals: Totals,
    oldest_ns: int,
    vma_class: str,
    trend: Trend = "unknown",
    survival: float | None = None,
    error: int = 0,
    unverified: int = 0,
) -> StackGrowth:
    return StackGrowth(
        id=f"{stack:016x}",
        kind=kind,
        bytes=size,
        count=count,
        allocated_bytes=totals.allocated_bytes,
        freed_bytes=totals.freed_bytes,
        allocated_count=totals.allocations,
        freed_count=totals.frees,
        rate=(size + unverified) / evidence.seconds if evidence.seconds else 0.0,
        oldest=max(0.0, (evidence.end.time_ns - oldest_ns) / 1e9) if oldest_ns else 0.0,
        vma_class=vma_class,
        complete=book.is_complete(stack),
        frames=book.frames(stack),
        trend=trend,
        survival=survival,
        bytes_error=error,
        unverified_bytes=unverified,
    )


def _survival(evidence: Evidence) -> dict[int, float]:
    """Of what each stack held in the middle of the window, the share that it still holds."""
    halfway = evidence.history.halfway()
    if halfway is None or halfway.seconds <= 0:
        return {}
    until_ns = evidence.start.time_ns + int(halfway.seconds * 1e9)
    live = evidence.blocks.bytes_by_stack_until(until_ns)
    return {stack: min(1.0, live.get(stack, 0) / size) for stack, size in halfway.live.items() if size > 0}


def _remarks(evidence: Evidence, books: Books, stacks: tuple[StackGrowth, ...], book: StackBook) -> list[str]:
    remarks: list[str] = []
    counters = evidence.counters
    if evidence.rss_source == "faults":
        remarks.append(
            "RSS changes were learnt from page faults, not from the kernel's counters (kmem:rss_stat): the stacks of "
            f"what was faulted in are estimates; {_quality(books)}"
        )
    if evidence.rss_source == "none":
        remarks.append("RSS changes were not traced: growth of memory mapped before the window has no stack")
    shared = counters["faults_in_run"]
    if shared > _SHARED_STACKS * (shared + counters["fault_stacks"]):
        remarks.append(
            f"{percent(shared, shared + counters['fault_stacks'])} of the page faults outside the heap went on with a "
            "run of neighbouring pages, whose stack was looked at again after 1 to 64 pages: figures of stacks of kind "
            "fault are good to about that"
        )
    if counters["forks"]:
        remarks.append(f"{plural(counters['forks'], 'child process', 'es')} made in the window: not traced")
    remarks += _about_budget(evidence)
    if evidence.probed and not counters["probe_hits"]:
        remarks.append("the probed allocators were not called in this window")
    remarks += _untracked(evidence.totals, book)
    remarks += _early_ends(stacks, book)
    remarks += book.remarks()
    if counters["frees_unknown"] and evidence.sampling.exact:
        remarks.append(
            f"{plural(counters['frees_unknown'], 'block')} from before the window freed: their size is not known"
        )
    return remarks


def _quality(books: Books) -> str:
    """How good the estimates are: how far the faults seen were from the growth that they stand for."""
    counted, grown = books.fault_estimate
    if not grown:
        return "no memory of that kind grew"
    return f"faults of {human_bytes(counted)} were seen where {human_bytes(grown)} became resident"


def _about_budget(evidence: Evidence) -> list[str]:
    """What the budget led to, a sentence for each step and one on what that means for the figures."""
    overhead = evidence.overhead
    remarks = [
        f"budget ({percent(overhead.limit or 0)} of its CPU time): after {human_seconds(step.seconds)} "
        f"{step.action} (traps took {percent(step.share)})"
        for step in overhead.steps[:_STEPS_TOLD]
    ]
    if len(overhead.steps) > _STEPS_TOLD:
        remarks.append(f"budget: {len(overhead.steps) - _STEPS_TOLD} more changes")
    if evidence.unverified is not None:
        remarks.append(
            f"the malloc probes were in for {percent(overhead.probed_share)} of the time: what is called unverified "
            "rests on blocks that survived from window to window, and on the stacks that touched fresh pages of the "
            "heap meanwhile; who touches a page first need not be who keeps it"
        )
    return remarks


def _untracked(totals: Mapping[int, Totals], book: StackBook) -> list[str]:
    """Stacks whose blocks found the table of live blocks full: a leak among them must not go unnamed."""
    lost = sorted(((total.lost_bytes, stack) for stack, total in totals.items() if total.lost), reverse=True)
    if not lost:
        return []
    names = "; ".join(f"{human_bytes(size)} by {book.label(stack)}" for size, stack in lost[:_UNTRACKED_NAMED])
    return [
        f"the table of live blocks was full (--max-live): {human_bytes(sum(size for size, _ in lost))} allocated "
        f"without knowing whether it was freed: {names}"
    ]


def _early_ends(stacks: tuple[StackGrowth, ...], book: StackBook) -> list[str]:
    """Which share of the bytes lies in stacks that end early, and why: the commonest reasons first."""
    held = sum(stack.bytes for stack in stacks)
    short: Counter[str] = Counter()
    for stack in stacks:
        reason = book.why_incomplete(int(stack.id, 16))
        if reason is not None:
            short[reason] += stack.bytes
    if not held or short.total() < _INCOMPLETE_SHARE * held:
        return []
    reasons = "; ".join(f"{percent(size, held)} {reason}" for reason, size in short.most_common(3) if size)
    return [f"{percent(short.total(), held)} of the bytes are in stacks that end early: {reasons}"]
