"""The verdict: what kind of growth this is, by rules that are written down here and in the README.

In this order:

1. not-growing: RSS grew by less than 1 MiB, or by less than 1 % of what it was and 256 KiB a minute.
2. file-cache, stacks, retention: more than half of the growth is file pages (files, text, rodata); thread and
   main stacks; memory that the allocator keeps beyond the live allocations.
3. plateau: more than half of the growth has causes (live allocations, direct mappings, page faults), and the last
   third of the window brought less than a tenth of it.
4. leak: the same, but it goes on to the end of the window.
5. unknown: anything else, or a window too short to tell (fewer than five looks or three seconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracer.model.class_names import FILE_CLASSES
from tracer.model.history import MIN_SECONDS
from tracer.model.report import LedgerRow, StackGrowth, Trend, Verdict, VerdictKind
from tracer.units import human_bytes, human_rate, human_seconds, plural

_MIN_GROWTH = 1 << 20
_MIN_SHARE = 0.01
_MIN_RATE = (256 << 10) / 60
_MAJORITY = 0.5
_CAUSES = ("live", "mapped", "faulted")

_WORDS: dict[VerdictKind, str] = {
    "leak": "still growing: looks like a leak",
    "plateau": "growth has levelled off: a cache or warm-up rather than a leak",
    "retention": "memory freed but kept by the allocator: fragmentation rather than a leak",
    "file-cache": "file pages: they can be reclaimed",
    "stacks": "thread stacks",
    "not-growing": "not growing",
    "unknown": "not enough data for a verdict: trace longer",
}


@dataclass(frozen=True, slots=True)
class Findings:
    """What the rules look at; bytes and seconds."""

    rss_start: int
    growth: int
    seconds: float
    rss_trend: Trend
    ledger: Sequence[LedgerRow]
    stacks: Sequence[StackGrowth]

    def by_cause(self, *causes: str) -> int:
        """Growth that the ledger books to these causes."""
        return sum(row.bytes for row in self.ledger if row.cause in causes)

    def by_class(self, *classes: str) -> int:
        """Growth that the ledger books to these classes."""
        return sum(row.bytes for row in self.ledger if row.vma_class in classes)


def judge(findings: Findings) -> Verdict:
    """Apply the rules and put the answer into one sentence."""
    kind = _kind(findings)
    return Verdict(kind, f"{_growth_sentence(findings)} ({_WORDS[kind]})", _evidence(findings))


def _kind(findings: Findings) -> VerdictKind:
    growth = findings.growth
    slow = growth < _MIN_SHARE * findings.rss_start and growth < _MIN_RATE * findings.seconds
    if growth < _MIN_GROWTH or slow:
        return "not-growing"
    if findings.by_class(*FILE_CLASSES) > _MAJORITY * growth:
        return "file-cache"
    if findings.by_class("stack", "thread stack") > _MAJORITY * growth:
        return "stacks"
    if findings.by_cause("kept-by-allocator") > _MAJORITY * growth:
        return "retention"
    caused = findings.by_cause(*_CAUSES)
    if findings.rss_trend == "unknown" or caused <= _MAJORITY * growth:
        return "unknown"
    return "leak" if findings.rss_trend == "growing" else "plateau"


def _growth_sentence(findings: Findings) -> str:
    growth, seconds = findings.growth, findings.seconds
    if growth < 0:
        return f"RSS shrank by {human_bytes(-growth)} in {human_seconds(seconds)}"
    head = (
        f"RSS grew {human_bytes(growth)} in {human_seconds(seconds)} ({human_rate(growth / seconds if seconds else 0)})"
    )
    return f"{head}: {', '.join(_shares(findings))}" if growth else head


def _shares(findings: Findings) -> list[str]:
    rows = [row for row in findings.ledger if row.stack and row.cause in _CAUSES]
    stacks = {row.stack for row in rows if row.bytes > 0}
    parts = [f"{human_bytes(sum(row.bytes for row in rows))} in {len(stacks)} call stack{'s' * (len(stacks) != 1)}"]
    stackless = sum(row.bytes for row in findings.ledger if not row.stack and row.cause in _CAUSES)
    if stackless:
        parts.append(f"{human_bytes(stackless)} without a stack")
    kept = findings.by_cause("kept-by-allocator")
    if kept:
        parts.append(f"{human_bytes(kept)} kept by malloc")
    reused = findings.by_cause("reused")
    if reused:
        parts.append(f"{human_bytes(-reused)} of it in memory already resident")
    released = findings.by_cause("released")
    if released:
        parts.append(f"{human_bytes(-released)} given back")
    own = findings.by_cause("memtrace")
    if own:
        parts.append(f"{human_bytes(own)} memtrace's own")
    parts.append(f"{human_bytes(findings.by_cause('unexplained'))} unexplained")
    return parts


def _evidence(findings: Findings) -> tuple[str, ...]:
    lines = [f"RSS over the window: {findings.rss_trend}"]
    # Of direct mappings and page faults it is not known how they went over the window.
    followed = [stack for stack in findings.stacks if stack.trend != "unknown"]
    growing = [stack for stack in followed if stack.trend == "growing"]
    if followed:
        lines.append(f"{len(growing)} of {plural(len(followed), 'stack')} with live allocations still grow")
    if findings.seconds < MIN_SECONDS:
        lines.append(f"the window was shorter than {MIN_SECONDS:.0f} s")
    allocated = sum(stack.allocated_bytes for stack in growing)
    if allocated:
        freed = sum(stack.freed_bytes for stack in growing)
        lines.append(f"of what the growing stacks allocated, {100 * freed / allocated:.0f} % was freed again")
    return tuple(lines)
