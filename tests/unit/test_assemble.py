"""A session's findings put together: which stacks the report has, and with which figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from tracer.assemble import Evidence, assemble
from tracer.model.blocks import Blocks
from tracer.model.events import Mapped, RssChange, Unmapped
from tracer.model.history import History, Point
from tracer.model.report import Overhead, Report, RssMove, StackGrowth
from tracer.model.resident import ResidentPages
from tracer.model.tracker import Tracker
from tracer.model.vma import RssCounters, Snapshot, Vma, VmaUsage
from tracer.probes.layout import Totals
from tracer.stacks import StackBook

PAGE, SECOND = 4096, 10**9
A, B, C = 0xA, 0xB, 0xC


class Book:
    """Stacks without frames; those in ``short`` end early."""

    def __init__(self, short: Mapping[int, str]) -> None:
        self.short = short

    def is_complete(self, stack: int) -> bool:
        return stack not in self.short

    def why_incomplete(self, stack: int) -> str | None:
        return self.short.get(stack)

    def frames(self, _stack: int) -> tuple[()]:
        return ()

    def remarks(self) -> list[str]:
        return []


def used(first: int, last: int, rss: int) -> VmaUsage:
    return VmaUsage(Vma(first * PAGE, last * PAGE, "rw-p", 0, "00:00", 0, b""), rss * PAGE)


def snapshot(seconds: int, *usages: VmaUsage) -> Snapshot:
    return Snapshot(seconds * SECOND, usages, RssCounters(anon=sum(row.rss for row in usages)))


def mapped(first: int, last: int, stack: int, seconds: int = 0) -> Mapped:
    return Mapped(seconds * SECOND, first * PAGE, (last - first) * PAGE, "rw-p", False, 0, stack, False, "mmap")


def report(
    *,
    start: Snapshot | None = None,
    end: Snapshot | None = None,
    events: Sequence[Mapped | Unmapped] = (),
    faults: Sequence[RssChange] = (),
    blocks: Sequence[tuple[int, int, int, int]] = (),
    totals: Mapping[int, Totals] | None = None,
    short: Mapping[int, str] | None = None,
    **changes: Any,
) -> Report:
    """Times in seconds; the window is from 100 to 110. Blocks are (address, size, stack, time)."""
    start, end = start or snapshot(100), end or snapshot(110)
    tracker = Tracker()
    tracker.seed(row.vma for row in start.usages)
    for event in events:
        tracker.apply(event)
    tracker.add_rss(faults)
    tracker.resync(row.vma for row in end.usages)
    known: dict[str, Any] = {
        "pid": 7,
        "command": "x",
        "started": datetime(2026, 2, 3, tzinfo=UTC),
        "seconds": 10.0,
        "ended": "Ctrl-C",
        "start": start,
        "end": end,
        "start_classes": {},
        "classes": {row.vma.start: "heap" for row in end.usages if row.vma.start < 50 * PAGE},
        "tracker": tracker,
        "history": History(),
        "totals": totals or {},
        "blocks": Blocks(*([row[i] * (SECOND if i == 3 else 1) for row in blocks] for i in range(4))),
        "resident": ResidentPages(),
        "probed": (),
        "counters": Counter(),
        "losses": {},
        "notes": ["a note"],
        "overhead": Overhead(None, 0, 0),
    }
    return assemble(Evidence(**{**known, **changes}), cast(StackBook, Book(short or {})))


def stacks(found: Report) -> dict[tuple[str, int], StackGrowth]:
    return {(stack.kind, int(stack.id, 16)): stack for stack in found.stacks}


def test_a_malloc_stack() -> None:
    found = report(
        end=snapshot(110, used(10, 20, 3)),
        blocks=[(10 * PAGE, 100, A, 104), (11 * PAGE, 200, A, 102), (12 * PAGE, 50, B, 109)],
        totals={A: Totals(5, 900, 3, 600, 0, 0), C: Totals(9, 9, 9, 9, 0, 0)},
    )
    assert [(stack.kind, stack.id) for stack in found.stacks] == [
        ("malloc", "000000000000000a"),
        ("malloc", "000000000000000b"),
    ]
    stack = stacks(found)["malloc", A]
    assert (stack.bytes, stack.count, stack.rate, stack.oldest) == (300, 2, 30.0, 8.0)
    assert (stack.allocated_bytes, stack.allocated_count, stack.freed_bytes, stack.freed_count) == (900, 5, 600, 3)
    assert (stack.vma_class, stack.trend, stack.complete) == ("heap", "unknown", True)
    assert stacks(found)["malloc", B].allocated_bytes == 0, "its totals found no place"


def test_the_trend_of_a_malloc_stack() -> None:
    history = History()
    for second in range(11):
        history.add(Point(second, 0, {A: 10 * second, B: 100}))
    found = report(
        end=snapshot(110, used(10, 20, 3)),
        blocks=[(10 * PAGE, 110, A, 104), (11 * PAGE, 100, B, 104)],
        history=history,
    )
    assert stacks(found)["malloc", A].trend == "growing"
    assert stacks(found)["malloc", B].trend == "steady"


def test_what_survived_of_a_malloc_stack() -> None:
    """A holds what it held half way, B only a fifth of it, C came later."""
    history = History()
    for second in range(11):
        history.add(Point(second, 0, {A: 100, B: 500, C: 0}))
    found = report(
        end=snapshot(110, used(10, 20, 3)),
        blocks=[(10 * PAGE, 100, A, 104), (11 * PAGE, 100, B, 104), (12 * PAGE, 900, B, 106), (13 * PAGE, 9, C, 106)],
        history=history,
    )
    survivals = {stack: stacks(found)["malloc", stack].survival for stack in (A, B, C)}
    assert survivals == {A: 1.0, B: 0.2, C: None}


def test_what_the_kernel_told_of_rss() -> None:
    found = report(
        faults=[
            RssChange.at(A, 61 * PAGE, "anon", "fault", 4 * PAGE),
            RssChange.at(B, 62 * PAGE, "anon", "fault", -PAGE),
            RssChange(0, 0, 0, "file", "other_call", -9, "ftruncate"),
        ],
        counters=Counter(faults_in_run=99, fault_stacks=1),
    )
    assert found.changes == (RssMove("fault", "anon", 4 * PAGE, -PAGE), RssMove("ftruncate", "file", 0, -9))
    assert any("99.0 % of the page faults" in note for note in found.notes)


def test_books_that_do_not_close_are_said_first() -> None:
    found = report(faults=[RssChange.at(A, 61 * PAGE, "anon", "fault", PAGE)], changes_complete=True)
    assert found.notes[0].startswith("the books do not close: the changes that the kernel told differ")


def test_a_mapped_stack() -> None:
    found = report(
        end=snapshot(110, used(60, 64, 3), used(70, 72, 1)),
        events=[mapped(60, 66, A, 103), mapped(70, 72, A, 105), Unmapped(64 * PAGE, 2 * PAGE), mapped(80, 81, B)],
    )
    stack = stacks(found)["mmap", A]
    assert (stack.bytes, stack.allocated_bytes, stack.freed_bytes) == (4 * PAGE, 8 * PAGE, 2 * PAGE)
    assert (stack.count, stack.allocated_count, stack.freed_count, stack.oldest) == (2, 2, 0, 7.0)
    assert set(stacks(found)) == {("mmap", A)}, "what B mapped is gone"


def test_neighbouring_mappings_of_one_stack_are_not_freed() -> None:
    found = report(end=snapshot(110, used(60, 70, 10)), events=[mapped(60 + i, 61 + i, A) for i in range(10)])
    stack = stacks(found)["mmap", A]
    assert (stack.bytes, stack.freed_bytes) == (10 * PAGE, 0)
    assert (stack.allocated_count, stack.freed_count, stack.count) == (10, 0, 10)


def test_a_fault_stack() -> None:
    found = report(
        start=snapshot(100, used(60, 70, 1)),
        end=snapshot(110, used(60, 70, 5)),
        faults=[
            RssChange.at(A, 61 * PAGE, "anon", "fault", 4 * PAGE),
            RssChange.at(B, 61 * PAGE, "anon", "fault", -PAGE),
        ],
    )
    assert set(stacks(found)) == {("fault", A)}, "B gave memory back"
    stack = stacks(found)["fault", A]
    assert (stack.bytes, stack.vma_class, stack.rate) == (4 * PAGE, "anonymous", 4 * PAGE / 10)


def test_stacks_are_sorted_by_bytes() -> None:
    found = report(
        end=snapshot(110, used(10, 20, 1), used(60, 64, 3)),
        events=[mapped(60, 64, A)],
        blocks=[(10 * PAGE, 100, B, 104), (11 * PAGE, 4000, C, 104)],
    )
    assert [stack.bytes for stack in found.stacks] == [3 * PAGE, 4000, 100]


def test_the_notes() -> None:
    counters = Counter(forks=1, frees_unknown=2)
    notes = report(counters=counters, probed=("glibc malloc",)).notes
    assert notes[0] == "a note" and len(notes) == 4
    assert any(note.startswith("1 child process ") for note in notes)
    assert any(note.startswith("2 blocks from before") for note in notes)
    assert any("were not called" in note for note in notes)
    assert report().notes == ("a note",)


def test_stacks_that_end_early_are_told_where_they_matter() -> None:
    end = snapshot(110, used(10, 20, 1))
    few = [(10 * PAGE, 9_960, A, 104), (14 * PAGE, 40, B, 104)]
    assert report(end=end, blocks=few, short={B: "of x"}).notes == ("a note",)
    note = report(end=end, blocks=[*few, (15 * PAGE, 2_000, C, 104)], short={B: "of x", C: "of y"}).notes[1]
    assert note.startswith("17.0 % of the bytes") and note.index("of y") < note.index("of x")


def test_without_any_stack() -> None:
    found = report(end=snapshot(110, used(60, 64, 2)))
    assert found.stacks == () and found.unexplained == found.growth == 2 * PAGE
