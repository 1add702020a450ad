"""Sums over ranges equal those over their bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tracer.heap.spans import Run, Spans, gaps, joined

EDGES = st.lists(st.integers(0, 60), max_size=16, unique=True).map(sorted)
RUNS = EDGES.map(lambda edges: list(zip(edges[0::2], edges[1::2], strict=False)))
BOUND = st.integers(-2, 64)


def _bytes(runs: list[Run]) -> set[int]:
    return {byte for start, end in runs for byte in range(start, end)}


@given(RUNS, BOUND, BOUND)
def test_within_counts_the_bytes_that_are_covered(runs: list[Run], start: int, end: int) -> None:
    spans = Spans(runs)
    wanted = _bytes(runs) & set(range(start, end))
    assert spans.within(start, end) == len(wanted)
    assert _bytes(list(spans.parts(start, end))) == wanted
    assert spans.total == len(_bytes(runs))
    assert list(spans) == runs


@given(RUNS, BOUND, BOUND)
def test_questions_about_single_ranges(runs: list[Run], start: int, end: int) -> None:
    spans = Spans(runs)
    assert spans.holds(start) == (start in _bytes(runs))
    assert spans.length_at(start) == next((high - low for low, high in runs if low == start), 0)
    assert spans.starting_within(start, end) == sum(start <= low < end for low, _ in runs)
    assert list(spans.between(start, end)) == [(low, high) for low, high in runs if start <= low < end]
    assert list(spans.longer_than(5)) == [(low, high) for low, high in runs if high - low > 5]


@given(RUNS, st.integers(0, 30), st.integers(0, 60))
def test_gaps_are_what_runs_leave(runs: list[Run], start: int, size: int) -> None:
    left = list(gaps(runs, start, start + size))
    assert _bytes(left) == set(range(start, start + size)) - _bytes(runs)


@given(RUNS)
def test_joined_covers_the_same_without_touching_neighbours(runs: list[Run]) -> None:
    made = list(joined(runs))
    assert _bytes(made) == _bytes(runs)
    assert all(earlier[1] < later[0] for earlier, later in pairwise(made))
