"""Live allocations by stack, range and residency, against sums made address by address."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model.blocks import Blocks
from tracer.model.sampling import CERTAIN

Row = tuple[int, int, int, int]
SPAN = 80


def blocks(*rows: Row) -> Blocks:
    """Rows of address, size, stack, time."""
    return Blocks(*([row[i] for row in rows] for i in range(4)))


THREE = ((300, 8, 2, 7), (100, 50, 1, 9), (200, 10, 1, 4))


def test_no_blocks() -> None:
    none = blocks()
    assert len(none) == 0 and none.within(0, 1 << 63) == range(0)
    assert none.bytes_by_stack(range(0)) == none.count_by_stack() == none.oldest_by_stack() == {}


def test_columns_are_in_the_order_of_addresses() -> None:
    three = blocks(*THREE)
    assert list(three.addresses) == [100, 200, 300]
    assert (list(three.sizes), list(three.stacks), list(three.times)) == ([50, 10, 8], [1, 1, 2], [9, 4, 7])


def test_a_block_belongs_where_it_begins() -> None:
    three = blocks(*THREE)
    assert list(three.within(100, 300)) == [0, 1]
    assert list(three.within(101, 301)) == [1, 2]
    assert list(three.within(149, 150)) == []


def test_by_stack() -> None:
    three = blocks(*THREE)
    assert three.bytes_by_stack(range(3)) == {1: 60, 2: 8}
    assert three.bytes_by_stack(range(1, 2)) == {1: 10}
    assert three.count_by_stack() == {1: 2, 2: 1}
    assert three.oldest_by_stack() == {1: 4, 2: 7}


def test_a_time_of_zero_is_a_time() -> None:
    assert blocks((1, 1, 5, 0), (2, 1, 5, 3)).oldest_by_stack() == {5: 0}


def test_a_block_over_several_runs() -> None:
    row = blocks((100, 100, 1, 0), (150, 10, 2, 0))
    assert row.resident_by_stack(range(2), [(90, 110), (120, 155), (190, 300)]) == {1: 10 + 35 + 10, 2: 5}


def test_nothing_resident() -> None:
    assert blocks((100, 100, 1, 0)).resident_by_stack(range(1), []) == {}
    assert blocks((100, 100, 1, 0)).resident_by_stack(range(1), [(0, 100), (200, 300)]) == {}


def test_a_stacks_class_is_where_most_of_its_bytes_lie() -> None:
    three = blocks((10, 5, 1, 0), (20, 9, 1, 0), (30, 6, 1, 0), (21, 1, 2, 0))
    ranges = [(0, 20, "heap"), (20, 30, "malloc arena"), (30, 40, "heap")]
    assert three.class_by_stack(ranges) == {1: "heap", 2: "malloc arena"}


def test_blocks_of_no_bytes_have_a_class_too() -> None:
    assert blocks((10, 0, 1, 0)).class_by_stack([(0, 20, "heap")]) == {1: "heap"}


def test_a_stack_outside_of_all_ranges_has_no_class() -> None:
    assert blocks((10, 5, 1, 0)).class_by_stack([(11, 20, "heap")]) == {}


def test_the_largest_values() -> None:
    top = (1 << 64) - 1
    row = blocks((top, top, top, top))
    assert row.bytes_by_stack(range(1)) == {top: top} and row.oldest_by_stack() == {top: top}


ROWS = st.lists(
    st.tuples(st.integers(0, SPAN), st.integers(0, 30), st.integers(1, 3), st.integers(0, 9)),
    max_size=10,
    unique_by=lambda row: row[0],
)


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[int, int]]:
    ends = sorted(draw(st.sets(st.integers(0, SPAN + 40), max_size=12)))
    return list(zip(ends[::2], ends[1::2], strict=False))


@given(ROWS, runs(), st.integers(0, SPAN), st.integers(0, SPAN))
@settings(max_examples=200, deadline=None)
def test_resident_bytes_address_by_address(
    rows: list[Row], resident: list[tuple[int, int]], low: int, high: int
) -> None:
    some = blocks(*rows)
    there = {address for start, end in resident for address in range(start, end)}
    expected: Counter[int] = Counter()
    for address, size, stack, _ in rows:
        if low <= address < high:
            expected[stack] += len(there & set(range(address, address + size)))
    found = some.resident_by_stack(some.within(low, high), resident)
    assert {stack: size for stack, size in found.items() if size} == {k: v for k, v in expected.items() if v}


@given(ROWS, st.integers(0, SPAN), st.integers(0, SPAN))
@settings(max_examples=100, deadline=None)
def test_sums_row_by_row(rows: list[Row], low: int, high: int) -> None:
    some = blocks(*rows)
    inside = [row for row in rows if low <= row[0] < high]
    indices = some.within(low, high)
    assert [some.addresses[i] for i in indices] == sorted(row[0] for row in inside)
    assert some.bytes_by_stack(indices) == {
        stack: sum(row[1] for row in inside if row[2] == stack) for stack in {row[2] for row in inside}
    }
    assert some.count_by_stack() == Counter(row[2] for row in rows)
    assert some.oldest_by_stack() == {
        stack: min(row[3] for row in rows if row[2] == stack) for stack in {row[2] for row in rows}
    }


def test_bytes_until_a_time_are_of_what_the_samples_stand_for() -> None:
    blocks = Blocks([10, 20, 30], [100, 100, 100], [1, 1, 2], [5, 9, 5], [CERTAIN // 4, CERTAIN, CERTAIN])
    assert blocks.bytes_by_stack_until(5) == {1: 400, 2: 100}
    assert blocks.bytes_by_stack_until(9)[1] == 500


def test_rounding_is_glibcs() -> None:
    """Usable sizes of malloc_usable_size(3): 24 for 0 to 24 bytes, 40 up to 40, 56 up to 56."""
    sizes = [0, 1, 24, 25, 40, 41, 1000]
    blocks = Blocks(range(7), sizes, [1] * 7, [0] * 7)
    assert blocks.rounding(range(7)) == sum(
        usable - size for usable, size in zip([24, 24, 24, 40, 40, 56, 1000], sizes, strict=True)
    )
