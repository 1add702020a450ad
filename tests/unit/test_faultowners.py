"""Stacks of page faults are matched with stacks of allocations by their common callers."""

from __future__ import annotations

from tracer.model.faultowners import Allocating, match_faults

MALLOC, IN_LEAKY, IN_LOOP, START = 0x7F00, 0x100, 0x200, 0x300
LEAK, HOT = 1, 2
KNOWN = {
    LEAK: Allocating((MALLOC, IN_LEAKY, IN_LOOP, START), "leaky", False),
    HOT: Allocating((MALLOC, 0x110, IN_LOOP, START), "hot", True),
}


def match(*ips: int, names: tuple[str | None, ...] = ()) -> int | str | None:
    found = match_faults({9: ips}, KNOWN, lambda _stack, index: names[index] if index < len(names) else None)
    return found.get(9, "nobody's")


def test_touched_within_malloc() -> None:
    assert match(0x7F90, 0x7F50, IN_LEAKY, IN_LOOP, START) == LEAK
    assert match(MALLOC + 5, IN_LEAKY, IN_LOOP, START) == LEAK


def test_touched_by_who_called_malloc() -> None:
    assert match(0x108, IN_LOOP, START, names=("leaky",)) == LEAK
    assert match(0x8000, 0x109, IN_LOOP, START, names=("memset", "leaky")) == LEAK


def test_touched_by_another_function_of_the_same_caller() -> None:
    assert match(0x555, IN_LOOP, START, names=("other",)) == "nobody's"
    assert match(0x555, IN_LOOP, START, names=(None,)) == "nobody's"


def test_blocks_that_come_and_go() -> None:
    assert match(MALLOC + 5, 0x110, IN_LOOP, START) is None


def test_other_callers() -> None:
    assert match(MALLOC + 5, 0x999, START) == "nobody's"
    assert match() == "nobody's"


def test_no_allocation_was_seen() -> None:
    assert match_faults({9: (1, 2, 3)}, {}, lambda _stack, _index: None) == {}
