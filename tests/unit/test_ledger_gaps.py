"""The books where the malloc probes were off for a time, or only a part of the allocations or faults was sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_ledger import FAULT, LEAKER, OTHER_FAULT, PAGE, faulted, pages, snapshot, used
from tracer.model.blocks import Blocks
from tracer.model.ledger import Books, close_books
from tracer.model.resident import ResidentPages
from tracer.model.sampling import CERTAIN
from tracer.model.survival import Survivors
from tracer.model.tracker import Tracker

HEAP = {10 * PAGE: "heap"}


def close(
    grown: int,
    *,
    blocks: Blocks | None = None,
    survivors: Sequence[tuple[float, int, float]] | None = (),
    faults: Sequence[tuple[int, float]] = (),
    owners: Mapping[int, int | None] | None = None,
    heap: bool = True,
    sampled_faults: bool = False,
) -> Books:
    """A VMA that grew by so many pages. Survivors are (page, stack, pages), faults (stack, pages)."""
    start, end = snapshot([used(10, 200, 2)]), snapshot([used(10, 200, 2 + grown)])
    tracker = Tracker()
    tracker.seed(row.vma for row in start.usages)
    tracker.add_rss(faulted(stack, 20, count) for stack, count in faults)
    places = [(int(page * PAGE), stack, count * PAGE) for page, stack, count in survivors or ()]
    books = close_books(
        start,
        end,
        HEAP if heap else {},
        HEAP if heap else {},
        tracker,
        blocks or Blocks([], [], [], []),
        ResidentPages(),
        survivors=Survivors(places) if survivors is not None else None,
        owners=owners,
        fault_stacks_sampled=sampled_faults,
    )
    assert sum(row.bytes for row in books.rows) == end.counters.rss - start.counters.rss
    return books


def test_without_gaps_the_allocator_keeps_the_rest() -> None:
    assert pages(close(10, survivors=None)) == {("heap", "kept-by-allocator", 0): 10}


def test_with_gaps_the_rest_is_unverified() -> None:
    assert pages(close(10)) == {("heap", "unverified", 0): 10}


def test_survivors_have_their_stack() -> None:
    books = close(10, survivors=[(20, LEAKER, 4), (30, LEAKER, 2)])
    assert pages(books) == {("heap", "unverified", LEAKER): 6, ("heap", "unverified", 0): 4}
    assert books.resident_by_stack["unverified", LEAKER] == 6 * PAGE


def test_survivors_are_no_more_than_what_grew() -> None:
    books = close(10, survivors=[(20, LEAKER, 60), (30, 7, 20)])
    assert pages(books) == {("heap", "unverified", LEAKER): 7.5, ("heap", "unverified", 7): 2.5}


def test_who_touched_the_pages_counts_beyond_the_survivors() -> None:
    faults = [(FAULT, 5), (OTHER_FAULT, 3)]
    books = close(10, survivors=[(20, LEAKER, 2)], faults=faults, owners={FAULT: LEAKER})
    assert pages(books) == {
        ("heap", "unverified", LEAKER): 5,
        ("heap", "faulted", OTHER_FAULT): 3,
        ("heap", "unverified", 0): 2,
    }


def test_who_frees_its_blocks_is_not_blamed_for_the_pages() -> None:
    assert pages(close(10, faults=[(FAULT, 8)], owners={FAULT: None})) == {("heap", "unverified", 0): 10}


@given(
    st.integers(-2, 60),
    st.lists(st.tuples(st.integers(10, 199), st.integers(1, 4), st.floats(0, 100)), max_size=6),
    st.lists(st.tuples(st.integers(1, 6), st.floats(-5, 50)), max_size=6),
)
def test_the_books_close_whatever_is_estimated(
    grown: int, survivors: list[tuple[float, int, float]], faults: list[tuple[int, float]]
) -> None:
    books = close(grown, survivors=survivors, faults=faults, owners={1: 2, 3: None})
    assert all(
        row.bytes > 0 for row in books.rows if row.cause in ("unverified", "faulted") and row.vma_class == "heap"
    )


def test_estimates_that_exceed_the_memory_by_chance() -> None:
    """100 blocks stand for 16 pages, give or take 14; the heap grew by ten."""
    quarter = CERTAIN // 4
    blocks = Blocks([20 * PAGE], [4 * PAGE], [LEAKER], [0], [quarter])
    assert pages(close(10, blocks=blocks, survivors=None)) == {
        ("heap", "live", LEAKER): 16,
        ("heap", "sampling", 0): -6,
    }


def test_what_exceeds_it_by_more_lies_in_older_memory() -> None:
    blocks = Blocks([20 * PAGE] * 1, [16 * PAGE], [LEAKER], [0], [CERTAIN])
    assert pages(close(10, blocks=blocks, survivors=None)) == {("heap", "live", LEAKER): 16, ("heap", "reused", 0): -6}


def test_sampled_fault_stacks_stand_for_all_faults() -> None:
    faults = [(FAULT, 2), (OTHER_FAULT, 1), (0, 9)]
    found = pages(close(12, faults=faults, heap=False, survivors=None, sampled_faults=True))
    assert found == {("anonymous", "faulted", FAULT): 8, ("anonymous", "faulted", OTHER_FAULT): 4}
    exact = pages(close(12, faults=faults, heap=False, survivors=None))
    assert exact == {
        ("anonymous", "faulted", FAULT): 2,
        ("anonymous", "faulted", OTHER_FAULT): 1,
        ("anonymous", "unexplained", 0): 9,
    }
