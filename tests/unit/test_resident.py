"""Which parts of a range are resident, against a set of all addresses."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model.resident import ResidentPages

SPAN = 60
RUNS = [(10, 20), (30, 40), (40, 45), (60, 70)]
LOOKED_AT = [(0, 50), (60, 90)]


def test_what_was_not_looked_at_counts_as_resident() -> None:
    assert ResidentPages().within(5, 9) == [(5, 9)]
    pages = ResidentPages(RUNS, LOOKED_AT)
    assert pages.within(50, 60) == [(50, 60)]
    assert pages.within(95, 99) == [(95, 99)]
    assert pages.within(40, 61) == [(40, 61)], "half of it was not looked at"


def test_parts_are_clipped_to_the_range() -> None:
    pages = ResidentPages(RUNS, LOOKED_AT)
    assert pages.within(0, 50) == [(10, 20), (30, 40), (40, 45)]
    assert pages.within(15, 42) == [(15, 20), (30, 40), (40, 42)]
    assert pages.within(12, 13) == [(12, 13)]
    assert pages.within(60, 90) == [(60, 70)]


def test_nothing_resident_in_what_was_looked_at() -> None:
    pages = ResidentPages(RUNS, LOOKED_AT)
    assert pages.within(20, 30) == [] and pages.within(0, 10) == [] and pages.within(70, 90) == []


@st.composite
def views(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Runs, and the ranges looked at in which they lie; either may touch its neighbour."""
    looked_at: list[tuple[int, int]] = []
    runs: list[tuple[int, int]] = []
    position = 0
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12)), max_size=6)):
        start, position = position + gap, position + gap + size
        looked_at.append((start, position))
        ends = sorted(draw(st.sets(st.integers(start, position), max_size=6)))
        runs += zip(ends[::2], ends[1::2], strict=False)
    return runs, looked_at


@given(views(), st.integers(0, SPAN), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_address_by_address(view: tuple[list[tuple[int, int]], list[tuple[int, int]]], start: int, size: int) -> None:
    runs, looked_at = view
    wanted = set(range(start, start + size))
    if any(first <= start and start + size <= last for first, last in looked_at):
        wanted &= {address for first, last in runs for address in range(first, last)}
    parts = ResidentPages(runs, looked_at).within(start, start + size)
    assert [address for first, last in parts for address in range(first, last)] == sorted(wanted)
    assert all(first < last for first, last in parts)
