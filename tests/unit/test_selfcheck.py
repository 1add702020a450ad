"""Reports whose books close, and the one line about those that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.reports import sample_report
from tracer.model.report import ClassGrowth, LedgerRow, Report, RssMove, VmaGrowth
from tracer.model.selfcheck import BETWEEN_READS, discrepancy
from tracer.model.vma import RssCounters, Vma

KIB = 1 << 10
HEAP = Vma(0x1000, 0x9000, "rw-p", 0, "00:00", 0, b"[heap]")


def closed(**changes: Any) -> Report:
    """Eight KiB more, all of them in the heap but one that came between the two reads."""
    known = sample_report(
        rss_start=RssCounters(anon=100 * KIB),
        rss_end=RssCounters(anon=108 * KIB),
        classes=(ClassGrowth("heap", 0, 7 * KIB, 0),),
        vmas=(VmaGrowth(HEAP, "heap", 7 * KIB, 7 * KIB),),
        ledger=(LedgerRow("heap", "live", "0" * 16, 7 * KIB), LedgerRow(BETWEEN_READS, "unexplained", None, KIB)),
        changes=(RssMove("fault", "anon", 9 * KIB, -KIB), RssMove("fault", "swap", 5 * KIB, 0)),
        changes_complete=True,
    )
    return replace(known, **changes)


def test_books_that_close() -> None:
    assert discrepancy(closed()) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ledger": ()}, "the causes differ from the growth of RSS by -8.0 KiB"),
        ({"classes": ()}, "the class heap differs from its causes by -7.0 KiB"),
        ({"vmas": ()}, "the class heap differs from its VMAs by +7.0 KiB"),
        ({"changes": ()}, "the changes that the kernel told differ from the growth of RSS by -8.0 KiB"),
        ({"rss_end": RssCounters(anon=107 * KIB)}, "the causes differ from the growth of RSS by +1.0 KiB"),
    ],
)
def test_books_that_do_not(changes: dict[str, Any], words: str) -> None:
    line = discrepancy(closed(**changes))
    assert line is not None and line.startswith("the books do not close: ") and words in line and "\n" not in line


def test_changes_that_were_not_all_seen_are_no_measure() -> None:
    assert discrepancy(closed(changes=(), changes_complete=False)) is None
