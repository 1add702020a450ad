from __future__ import annotations

from typing import Any, cast

from tests.unit.reports import MIB, STARTED, frame, vma
from tracer.interim import Findings, interim_report
from tracer.model.events import Mapped, RssChange, Unmapped
from tracer.model.report import Report
from tracer.model.tracker import Tracker
from tracer.model.vma import RssCounters
from tracer.probes.consumer import RawStack
from tracer.probes.layout import StackStatus, Totals
from tracer.stacks import StackBook


class Book:
    """Stacks whose one frame is named after them."""

    def raw(self, stack: int) -> RawStack:
        return RawStack((stack,), StackStatus.COMPLETE)

    def quick_frames(self, stack: int) -> tuple[Any, ...]:
        return (frame(f"f{stack}"),)


def mapped(start: int, size: int, stack: int) -> Mapped:
    return Mapped(7, start, size, "rw-p", False, 0, stack, False, "mmap")


def report(totals: dict[int, Totals], tracker: Tracker) -> Report:
    found = Findings(
        pid=7,
        command="app",
        started=STARTED,
        seconds=10.0,
        rss_start=RssCounters(anon=MIB),
        rss=RssCounters(anon=5 * MIB),
        totals=totals,
        tracker=tracker,
        code=(vma(0x1000, 4096, b"/bin/app", "r-xp"),),
        probed=("glibc malloc",),
        losses={"live_full": 0},
        notes=("a note",),
    )
    return interim_report(found, cast(StackBook, Book()))


def test_stacks_by_what_they_hold() -> None:
    tracker = Tracker()
    tracker.seed([])
    # Allocations and bytes, frees and bytes: one leaks, one comes and goes, one only freed what was there before.
    made = report(
        {1: Totals(9, 900, 4, 400, 0, 0), 2: Totals(5, 5000, 5, 5000, 0, 0), 3: Totals(0, 0, 2, 80, 0, 0)}, tracker
    )
    figures = [
        (each.frames[0].function, each.bytes, each.count, each.allocated_bytes, each.rate) for each in made.stacks
    ]
    assert figures == [("f1", 500, 5, 900, 50.0), ("f2", 0, 0, 5000, 0.0)]
    assert made.growth == 4 * MIB and made.verdict.kind == "unknown" and made.ledger == ()
    assert [row.vma.path for row in made.vmas] == [b"/bin/app"]


def test_direct_mappings_hold_what_was_faulted_in_and_is_still_mapped() -> None:
    tracker = Tracker()
    tracker.seed([])
    tracker.apply(mapped(MIB, 4 * MIB, 5))
    tracker.apply(mapped(16 * MIB, 2 * MIB, 6))
    tracker.add_rss(
        [RssChange.at(9, MIB, "anon", "fault", 3 * MIB), RssChange.at(9, 16 * MIB, "anon", "fault", 2 * MIB)]
    )
    tracker.apply(Unmapped(16 * MIB, MIB))
    tracker.apply(mapped(32 * MIB, MIB, 8))
    tracker.apply(Unmapped(32 * MIB, MIB))
    figures = {
        each.frames[0].function: (each.kind, each.bytes, each.freed_bytes) for each in report({}, tracker).stacks
    }
    assert figures == {
        "f5": ("mmap", 3 * MIB, 0),
        "f6": ("mmap", MIB, MIB),
        "f8": ("mmap", 0, MIB),
    }
