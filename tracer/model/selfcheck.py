"""Whether the books of a report close: all sums that must be equal, compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from tracer.model.report import Report
from tracer.units import human_bytes

# What changed while the VMAs were read is in the counters, but in no VMA: the ledger has a class of its own for it.
BETWEEN_READS = "while reading"


def discrepancy(report: Report) -> str | None:
    """One line that says which sums differ, and by how much; None where the books close."""
    found = [f"{what} by {human_bytes(off, signed=True)}" for what, off in _differences(report) if off]
    return f"the books do not close: {'; '.join(found)}" if found else None


def _differences(report: Report) -> Iterator[tuple[str, int]]:
    yield "the causes differ from the growth of RSS", sum(row.bytes for row in report.ledger) - report.growth
    ledger = _sums((row.vma_class, row.bytes) for row in report.ledger)
    classes = _sums((row.name, row.growth) for row in report.classes)
    vmas = _sums((row.vma_class, row.growth) for row in report.vmas)
    for name in sorted({*ledger, *classes, *vmas} - {BETWEEN_READS}):
        yield f"the class {name} differs from its causes", classes[name] - ledger[name]
        yield f"the class {name} differs from its VMAs", classes[name] - vmas[name]
    if report.changes_complete:
        changes = sum(change.grew + change.shrank for change in report.changes if change.member != "swap")
        yield "the changes that the kernel told differ from the growth of RSS", changes - report.growth


def _sums(rows: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for name, size in rows:
        sums[name] += size
    return sums
