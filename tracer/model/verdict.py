"""The verdict: what kind of growth this is, by rules that are written down here and in the README.

In this order:

1. not-growing: RSS grew by less than 1 MiB, or by less than 1 % of what it was and 256 KiB a minute.
2. file-cache, stacks: more than half of the growth is file pages (files, text, rodata); thread and
   main stacks.
3. retention: more than half of the growth is memory that the allocator keeps beyond the live allocations; or more than
   a third, and more than these are, and RSS has levelled off.
4. Of growth of which more than half has causes (live allocations, direct mappings, page faults):
   plateau, where RSS has levelled off by the end of the window (the rate of its second half lies, with 95 %
   confidence, below a tenth of the whole window's or 256 KiB a minute);
   leak, where it goes on (the rate of the second half is above these, and above 0 with 95 % confidence) and, where that
   is known, at least half of what the growing stacks held in the middle of the window is still live at its end.
5. unknown: anything else, or a window too short to tell (fewer than three seconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracer.model.class_names import FILE_CLASSES, STACK_CLASSES
from tracer.model.rates import MIN_RATE, MIN_SECONDS, Outlook, Rate
from tracer.model.report import HeapInside, LedgerRow, StackGrowth, Verdict, VerdictKind
from tracer.units import human_bytes, human_rate, human_seconds, percent, plural

_MIN_GROWTH = 1 << 20
_MIN_SHARE = 0.01
_MAJORITY = 0.5
_MIN_SURVIVAL = 0.5
_CAUSES = ("live", "mapped", "faulted")
# What malloc holds beyond live allocations: freed chunks, headers, and what cannot be told apart.
_KEPT = ("kept-by-allocator", "freed", "metadata")

_WORDS: dict[VerdictKind, str] = {
    "leak": "still growing: looks like a leak",
    "plateau": "growth has levelled off: a cache or warm-up rather than a leak",
    "retention": "memory freed but kept by the allocator: fragmentation rather than a leak",
    "file-cache": "file pages: they can be reclaimed",
    "stacks": "thread stacks",
    "not-growing": "not growing",
    "unknown": "not enough data for a verdict: trace longer",
}
_UNCERTAIN = "no verdict with 95 % confidence: trace longer"
_TURNOVER = "growing, but most older blocks are freed again: a queue or cache that still fills, or a slow leak"
_UNCAUSED = "no cause is known for most of it"


@dataclass(frozen=True, slots=True)
class Findings:
    """What the rules look at; bytes and seconds."""

    rss_start: int
    growth: int
    seconds: float
    outlook: Outlook
    ledger: Sequence[LedgerRow]
    stacks: Sequence[StackGrowth]
    heap: HeapInside | None = None

    def by_cause(self, *causes: str) -> int:
        """Growth that the ledger books to these causes."""
        return sum(row.bytes for row in self.ledger if row.cause in causes)

    def by_class(self, *classes: str) -> int:
        """Growth that the ledger books to these classes."""
        return sum(row.bytes for row in self.ledger if row.vma_class in classes)

    @property
    def growing_stacks(self) -> list[StackGrowth]:
        """Stacks whose live allocations still grow."""
        return [stack for stack in self.stacks if stack.trend == "growing"]

    @property
    def survival(self) -> float | None:
        """Of what the growing stacks held in the middle of the window, the share still live; None: unknown."""
        known = [stack for stack in self.growing_stacks if stack.survival is not None]
        weight = sum(stack.bytes for stack in known)
        return sum(stack.bytes * (stack.survival or 0.0) for stack in known) / weight if weight else None


def judge(findings: Findings) -> Verdict:
    """Apply the rules and put the answer into one sentence."""
    kind, words = _kind(findings)
    evidence = _evidence(findings)
    if kind == "retention" and findings.heap is not None:
        evidence += tuple(line for line in (findings.heap.finding, *findings.heap.remedies) if line)
    return Verdict(kind, f"{_growth_sentence(findings)} ({words})", evidence)


def _kind(findings: Findings) -> tuple[VerdictKind, str]:
    kind = _kind_of_memory(findings) or _kind_of_course(findings)
    return (kind, _WORDS[kind]) if kind != "unknown" else ("unknown", _why_unknown(findings))


def _kind_of_memory(findings: Findings) -> VerdictKind | None:
    """Verdicts that follow from what kind of memory it is, not from how it goes on."""
    growth = findings.growth
    slow = growth < _MIN_SHARE * findings.rss_start and growth < MIN_RATE * findings.seconds
    if growth < _MIN_GROWTH or slow:
        return "not-growing"
    if findings.by_class(*FILE_CLASSES) > _MAJORITY * growth:
        return "file-cache"
    if findings.by_class(*STACK_CLASSES) > _MAJORITY * growth:
        return "stacks"
    return "retention" if _is_kept(findings) else None


def _is_kept(findings: Findings) -> bool:
    kept = findings.by_cause(*_KEPT)
    if kept > _MAJORITY * findings.growth:
        return True
    levelled = findings.outlook.trend in ("levelled-off", "steady")
    return levelled and kept > findings.growth / 3 and kept > findings.by_cause("live")


def _kind_of_course(findings: Findings) -> VerdictKind:
    if findings.by_cause(*_CAUSES) <= _MAJORITY * findings.growth:
        return "unknown"
    match findings.outlook.trend:
        case "growing":
            survival = findings.survival
            return "leak" if survival is None or survival >= _MIN_SURVIVAL else "unknown"
        case "levelled-off" | "steady":
            return "plateau"
    return "unknown"


def _why_unknown(findings: Findings) -> str:
    if findings.seconds < MIN_SECONDS or findings.outlook.whole is None:
        return _WORDS["unknown"]
    if findings.by_cause(*_CAUSES) <= _MAJORITY * findings.growth:
        return f"{_UNCAUSED}: {_WORDS['unknown']}"
    return _TURNOVER if findings.outlook.trend == "growing" else _UNCERTAIN


def _growth_sentence(findings: Findings) -> str:
    growth, seconds = findings.growth, findings.seconds
    if growth < 0:
        return f"RSS shrank by {human_bytes(-growth)} in {human_seconds(seconds)}"
    head = (
        f"RSS grew {human_bytes(growth)} in {human_seconds(seconds)} ({human_rate(growth / seconds if seconds else 0)})"
    )
    return f"{head}: {', '.join(_shares(findings))}" if growth else head


def _shares(findings: Findings) -> list[str]:
    rows = [row for row in findings.ledger if row.stack and row.cause in (*_CAUSES, "unverified")]
    stacks = {row.stack for row in rows if row.bytes > 0}
    parts = [f"{human_bytes(sum(row.bytes for row in rows))} in {len(stacks)} call stack{'s' * (len(stacks) != 1)}"]
    stackless = sum(row.bytes for row in findings.ledger if not row.stack and row.cause in _CAUSES)
    if stackless:
        parts.append(f"{human_bytes(stackless)} without a stack")
    unverified = sum(row.bytes for row in findings.ledger if not row.stack and row.cause == "unverified")
    if unverified:
        parts.append(f"{human_bytes(unverified)} unverified")
    kept = findings.by_cause(*_KEPT)
    if kept:
        parts.append(f"{human_bytes(kept)} kept by malloc")
    reused = findings.by_cause("reused")
    if reused:
        parts.append(f"{human_bytes(-reused)} of it in memory already resident")
    released = findings.by_cause("released", "unmapped", "advised")
    if released:
        parts.append(f"{human_bytes(-released)} given back")
    own = findings.by_cause("memtrace")
    if own:
        parts.append(f"{human_bytes(own)} memtrace's own")
    parts.append(f"{human_bytes(findings.by_cause('unexplained'))} unexplained")
    return parts


def _evidence(findings: Findings) -> tuple[str, ...]:
    lines = [f"RSS over the window: {findings.outlook.trend}{_rates(findings.outlook)}"]
    # Of direct mappings and page faults it is not known how they went over the window.
    followed = [stack for stack in findings.stacks if stack.trend != "unknown"]
    growing = findings.growing_stacks
    if followed:
        lines.append(f"{len(growing)} of {plural(len(followed), 'stack')} with live allocations still grow")
    if findings.seconds < MIN_SECONDS:
        lines.append(f"the window was shorter than {MIN_SECONDS:.0f} s")
    allocated = sum(stack.allocated_bytes for stack in growing)
    if allocated:
        freed = sum(stack.freed_bytes for stack in growing)
        lines.append(f"of what the growing stacks allocated, {percent(freed, allocated)} was freed again")
    survival = findings.survival
    if survival is not None:
        lines.append(f"of what they held in the middle of the window, {percent(survival)} is still live")
    return tuple(lines)


def _rates(outlook: Outlook) -> str:
    if outlook.whole is None or outlook.late is None:
        return ""
    return f" ({_with_error(outlook.whole)}; in its second half {_with_error(outlook.late)}; 95 % intervals)"


def _with_error(rate: Rate) -> str:
    return f"{human_rate(rate.mean)} +- {human_rate(rate.error)}"
