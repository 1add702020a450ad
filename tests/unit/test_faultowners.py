"""Stacks of page faults are matched with stacks of allocations by their common callers."""

from __future__ import annotations

from tracer.model.faultowners import Allocating, match_faults

MALLOC, IN_LEAKY, IN_LOOP, START = 0x7F00, 0x100, 0x200, 0x300
LEAK, HOT = 1, 2
KNOWN = {
    LEAK: Allocating((MALLOC, IN_LEAKY, IN_LOOP, START), False),
    HOT: Allocating((MALLOC, 0x910, IN_LOOP, START), True),
}
NAMES = {
    IN_LEAKY: "leaky",
    0x108: "leaky",
    0x910: "hot",
    IN_LOOP: "loop",
    START: "start",
    0x555: "other",
    0x8000: "__memset_avx2",
}


def match(*ips: int, names: dict[int, str] = NAMES) -> int | str | None:
    return match_faults({9: ips}, KNOWN, names.get).get(9, "nobody's")


def test_touched_within_malloc() -> None:
    assert match(0x7F90, 0x7F50, IN_LEAKY, IN_LOOP, START) == LEAK
    assert match(MALLOC + 5, IN_LEAKY, IN_LOOP, START) == LEAK


def test_touched_by_who_called_malloc() -> None:
    assert match(0x108, IN_LOOP, START) == LEAK
    assert match(0x8000, 0x108, IN_LOOP, START) == LEAK


def test_touched_by_who_called_a_function_that_called_malloc() -> None:
    """Bytearray's constructor zeroes what a helper of it has allocated."""
    known = {LEAK: Allocating((MALLOC, 0x4000, 0x5000, IN_LEAKY, IN_LOOP, START), False)}
    assert match_faults({9: (0x8000, 0x108, IN_LOOP, START)}, known, NAMES.get) == {9: LEAK}


def test_without_names_addresses_must_be_close() -> None:
    assert match(0x108, IN_LOOP, START, names={}) == LEAK
    assert match(0x5555, IN_LOOP, START, names={}) == "nobody's"
    assert match(0x8000, 0x108, IN_LOOP, START, names={}) == "nobody's", "what is between might allocate for itself"


def test_touched_by_another_function_of_the_same_caller() -> None:
    assert match(0x555, IN_LOOP, START) == "nobody's"


def test_blocks_that_come_and_go() -> None:
    assert match(MALLOC + 5, 0x910, IN_LOOP, START) is None


def test_other_callers() -> None:
    assert match(MALLOC + 5, 0x999, START + 1) == "nobody's"
    assert match() == "nobody's"


def test_no_allocation_was_seen() -> None:
    assert match_faults({9: (1, 2, 3)}, {}, NAMES.get) == {}
