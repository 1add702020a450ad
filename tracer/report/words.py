"""What the report says in words: causes, losses, how exact it is, whether the books close. Every form uses these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tracer.model.report import ClassGrowth, Overhead, Report
from tracer.units import human_bytes, human_seconds, percent, plural

_CAUSES = {
    "live": "live allocations",
    "kept-by-allocator": "kept by the allocator",
    "mapped": "mapped directly",
    "faulted": "faulted in",
    "before-attach": "from before the window",
    "memtrace": "memtrace itself",
    "reused": "in memory already resident",
    "sampling": "error of the estimates",
    "unverified": "unverified: lived through a gap in tracing",
    "freed": "freed, but kept by the allocator",
    "metadata": "the allocator's own headers",
    "populated": "brought in by system calls",
    "advised": "given back by madvise",
    "unmapped": "unmapped",
    "released": "given back / reclaimed",
    "unexplained": "unexplained",
}
NO_STACKS = "No call stack holds memory that was acquired while traced"
# How each kind of stack came by its memory: heading, what is counted, what undoes it.
KINDS = {
    "malloc": ("malloc", "block", "freed"),
    "mmap": ("mmap", "mapping", "unmapped"),
    "brk": ("brk", "call", "given back"),
    "fault": ("page faults", "fault", "dropped"),
}
# What changed RSS, where it is no system call's name.
_MOVES = {
    "fault": "page faults",
    "kswapd": "reclaimed by kswapd",
    "khugepaged": "made huge pages by khugepaged",
    "other-context": "by other processes or the kernel",
}
_MOST_MOVES = 6
# The counters of bpf/memtrace.h in words.
_LOSSES = {
    "live_full": "blocks not tracked: the table of live blocks was full",
    "totals_full": "allocations whose stack had no place in the table of totals",
    "stacks_full": "stacks whose frames had no place in the table of stacks",
    "threads_full": "calls missed: the table of threads was full",
    "events_lost": "VMA events lost: the ring buffer was full",
    "rss_full": "RSS changes counted without their address: the table was full",
    "calls_abandoned": "allocation calls that never returned (exception, longjmp, end of a thread)",
    "frees_missed": "blocks reused by the allocator without a free that memtrace saw",
    "read_failed": "reads of the target's memory that failed",
    "stacks_empty": "stacks of which not one frame could be read",
    "rss_unseeded": "RSS changes of unknown size (first of their kind after an exec)",
}


def cause_in_words(cause: str) -> str:
    """A cause of the ledger; one without words of its own is shown as it is."""
    return _CAUSES.get(cause, cause.replace("-", " "))


def loss_in_words(name: str) -> str:
    """What a counter of losses counts; a name without words of its own is shown as it is."""
    return _LOSSES.get(name, name.replace("_", " "))


def precision(report: Report) -> str:
    """How far the figures of stacks can be trusted."""
    if not report.sampling.exact:
        return f"sampled every {human_bytes(report.sampling.interval)}: figures of stacks are estimates"
    if not report.probed:
        return "no allocator probed"
    return "exact but for the losses below" if any(report.losses.values()) else "exact (every allocation seen)"


def all_classes(report: Report) -> list[ClassGrowth]:
    """The classes, and any that only the ledger names: no row of it may go missing."""
    sums: dict[str, int] = {}
    for row in report.ledger:
        sums[row.vma_class] = sums.get(row.vma_class, 0) + row.bytes
    for known in report.classes:
        sums.pop(known.name, None)
    return [*report.classes, *(ClassGrowth(name, 0, size, 0) for name, size in sums.items())]


def growth_by_stack(report: Report) -> dict[str, int]:
    """What of the growth of RSS the ledger books to each stack, in bytes."""
    sums: dict[str, int] = {}
    for row in report.ledger:
        if row.stack is not None:
            sums[row.stack] = sums.get(row.stack, 0) + row.bytes
    return sums


def share_basis(report: Report, of_growth: Mapping[str, int]) -> Literal["growth", "live bytes"]:
    """What a stack's share is a share of: RSS growth by the ledger, or, where that misleads, all live bytes.

    It misleads where RSS did not grow or grew by less than one stack holds: live blocks may lie in memory that was
    resident before, or may never have been touched.
    """
    return "growth" if 0 < max(of_growth.values(), default=0) <= report.growth else "live bytes"


def why_no_stacks(report: Report) -> tuple[str, ...]:
    """What explains that no stack holds memory: the report's notes, or what follows from its counters."""
    if report.notes:
        return report.notes
    if not report.probed:
        return ("no allocator was probed, and no mapping or page fault was seen",)
    if not report.overhead.probe_hits:
        return ("none of the probed functions was called",)
    return (f"{plural(report.overhead.probe_hits, 'probe hit')}, yet nothing that was allocated is still held",)


def balance(report: Report) -> str:
    """Whether the causes add up to the growth of RSS, and what of it is unexplained."""
    total = sum(row.bytes for row in report.ledger)
    share = f" ({percent(report.unexplained, report.growth)})" if report.unexplained and report.growth else ""
    unexplained = f"unexplained {human_bytes(report.unexplained)}{share}"
    if total == report.growth:
        return f"sum of the causes {plus(total)} = growth of RSS; {unexplained}"
    return (
        f"DOES NOT CLOSE: sum of the causes {plus(total)}, growth of RSS {plus(report.growth)}, "
        f"difference {plus(report.growth - total)}; {unexplained}"
    )


def changes(report: Report) -> str:
    """What the kernel told of RSS: a second account, by what it did."""
    sums: dict[str, list[int]] = {}
    for row in report.changes:
        if row.member != "swap":
            both = sums.setdefault(row.cause, [0, 0])
            both[0] += row.grew
            both[1] += row.shrank
    parts = [
        f"{_MOVES.get(cause, cause)} {' and '.join(plus(size) for size in both if size)}"
        for cause, both in sums.items()
        if any(both)
    ]
    return ", ".join(parts[:_MOST_MOVES]) + (f", {len(parts) - _MOST_MOVES} more" if parts[_MOST_MOVES:] else "")


def cost(overhead: Overhead) -> str:
    """What memtrace took for itself, and from the target."""
    target = "not measured" if overhead.target_share is None else f"{percent(overhead.target_share)} of its CPU time"
    if overhead.cpu_share is not None:
        target += f", {percent(overhead.cpu_share)} of one CPU"
    kernel = f", {human_bytes(overhead.map_memory)} of BPF maps" if overhead.map_memory else ""
    return (
        f"{human_seconds(overhead.self_cpu)} CPU, {human_bytes(overhead.self_rss)} RSS{kernel}; "
        f"{plural(overhead.probe_hits, 'probe hit')}; cost to the target: {target}"
    )


def plus(n: int) -> str:
    """A growth in bytes, with its sign."""
    return human_bytes(n, signed=True)
