"""The window in a bounded number of looks, and what they say about how a quantity goes on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.model.history import MIN_POINTS, STILL_GROWING_SHARE, History, Point
from tracer.model.rates import MIN_SECONDS

MIB = 1 << 20
STACK = 7


def history(size_at: Callable[[float], float], seconds: float = 30, interval: float = 1) -> History:
    """RSS and one stack's live bytes as functions of time, looked at every ``interval`` seconds from 0 on."""
    looks = History()
    for index in range(int(seconds / interval) + 1):
        size = int(size_at(index * interval))
        looks.add(Point(index * interval, size, {STACK: size}))
    return looks


def linear(seconds: float) -> float:
    return seconds * MIB


def warm_up(seconds: float) -> float:
    """Grows for five seconds, and then no more."""
    return min(seconds, 5) * MIB


def constant(_seconds: float) -> float:
    return 3 * MIB


def test_no_looks() -> None:
    looks = History()
    assert looks.seconds == 0 and looks.rss_values() == ()
    assert looks.trend_of_stack(STACK, 5, 0) == "unknown" and looks.halfway() is None
    assert looks.rss_outlook(0, 5).trend == "unknown"


def test_looks_are_kept_as_they_are_while_there_are_few() -> None:
    looks = history(linear, 20)
    assert looks.rss_values() == tuple(second * MIB for second in range(21)) and looks.seconds == 20


@given(st.integers(1, 3000))
@settings(max_examples=100, deadline=None)
def test_looks_are_bounded_and_evenly_spread(count: int) -> None:
    looks = History()
    for index in range(count):
        looks.add(Point(float(index), index, {}))
    kept = looks.rss_values()
    assert len(kept) <= 24
    steps = {after - before for before, after in pairwise(kept)}
    assert kept[0] == 0 and len(steps) <= 1
    if count > 24:
        assert len(kept) >= 12
        (step,) = steps
        assert count - 1 - kept[-1] < step, "the last look is no further from the end than the distance"
    else:
        assert kept == tuple(range(count))


def test_clear_begins_anew() -> None:
    looks = history(linear, 200)
    looks.sample(1, 1)
    looks.clear()
    assert looks.rss_values() == () and looks.seconds == 0
    for index in range(20):
        looks.add(Point(index, index, {}))
    assert len(looks.rss_values()) == 20, "the distance between looks is the first one again"


@pytest.mark.parametrize("seconds", [4, 30, 3600])
def test_linear_growth_goes_on(seconds: int) -> None:
    looks = history(linear, seconds)
    assert looks.trend_of_stack(STACK, seconds * MIB, 0.9) == "growing", "however much was freed again"


@pytest.mark.parametrize("seconds", [30, 3600])
def test_a_warm_up_levels_off(seconds: int) -> None:
    looks = history(warm_up, seconds)
    assert looks.trend_of_stack(STACK, 5 * MIB, 0.0) == "levelled-off"


def test_blocks_that_come_and_go_are_steady() -> None:
    looks = history(warm_up)
    assert looks.trend_of_stack(STACK, 5 * MIB, 0.49) == "levelled-off"
    assert looks.trend_of_stack(STACK, 5 * MIB, 0.5) == "steady"


def test_what_does_not_grow_is_steady() -> None:
    assert history(constant).trend_of_stack(STACK, 3 * MIB, 0) == "steady"
    assert history(lambda seconds: (90 - seconds) * MIB).trend_of_stack(STACK, 60 * MIB, 0) == "steady"


def test_a_peak_in_the_middle_is_no_growth() -> None:
    """Later growth that only comes back to an earlier height is none."""
    looks = history(lambda seconds: MIB * (20 if seconds == 10 else seconds))
    assert looks.trend_of_stack(STACK, 20 * MIB, 0) == "levelled-off"


def test_the_share_that_still_counts_as_growing() -> None:
    before, last = 100, 30
    looks = history(lambda seconds: before if seconds >= 1 else 0)
    enough = int(before / (1 - STILL_GROWING_SHARE)) + 1
    assert looks.trend_of_stack(STACK, enough, 0) == "growing"
    assert looks.trend_of_stack(STACK, enough - 2, 0) == "levelled-off"
    assert looks.seconds == last


def test_the_last_third_is_what_counts() -> None:
    assert history(lambda seconds: min(seconds, 19) * MIB).trend_of_stack(STACK, 19 * MIB, 0) == "levelled-off"
    assert history(lambda seconds: MIB if seconds >= 20 else 0).trend_of_stack(STACK, MIB, 0) == "levelled-off"
    assert history(lambda seconds: MIB if seconds >= 21 else 0).trend_of_stack(STACK, MIB, 0) == "growing"


def test_growth_that_begins_in_the_last_third() -> None:
    assert history(lambda seconds: max(0, seconds - 25) * MIB).trend_of_stack(STACK, 5 * MIB, 0) == "growing"


def test_too_few_looks() -> None:
    interval = 2 * MIN_SECONDS
    assert history(linear, (MIN_POINTS - 2) * interval, interval).trend_of_stack(STACK, MIB, 0) == "unknown"
    assert history(linear, (MIN_POINTS - 1) * interval, interval).trend_of_stack(STACK, 90 * MIB, 0) == "growing"


def test_too_short_a_time() -> None:
    assert history(linear, MIN_SECONDS - 0.1, 0.1).trend_of_stack(STACK, 9 * MIB, 0) == "unknown"
    assert history(linear, MIN_SECONDS, 0.5).trend_of_stack(STACK, 9 * MIB, 0) == "growing"


def test_a_stack_without_live_bytes() -> None:
    looks = history(linear)
    assert looks.trend_of_stack(STACK, 0, 1.0) == "steady"
    assert looks.trend_of_stack(STACK, 0, 0.0) == "unknown"


def test_a_stack_that_came_late() -> None:
    looks = History()
    for second in range(31):
        looks.add(Point(second, 0, {9: (second - 24) * MIB} if second >= 25 else {}))
    assert looks.trend_of_stack(9, 6 * MIB, 0) == "growing"
    assert looks.trend_of_stack(8, 6 * MIB, 0) == "growing", "never seen: all of it came since the last look"


def test_each_stack_by_itself() -> None:
    looks = History()
    for second in range(31):
        looks.add(Point(second, second, {1: second, 2: min(second, 3)}))
    assert (looks.trend_of_stack(1, 30, 0), looks.trend_of_stack(2, 3, 0)) == ("growing", "levelled-off")


def test_a_burst_between_the_start_and_the_first_look() -> None:
    """It is growth as any other, and the crumbs that follow do not make it go on."""
    looks = History()
    looks.add(Point(0.0, 5 * MIB, {}))
    for second in range(1, 31):
        size = 100 * MIB + second * 4096
        looks.add(Point(second, size, {STACK: size}))
    assert looks.trend_of_stack(STACK, 100 * MIB + 31 * 4096, 0.0) == "levelled-off"


def test_the_look_in_the_middle() -> None:
    looks = history(linear, 20)
    middle = looks.halfway()
    assert middle is not None and middle.seconds == 10


@given(st.integers(100, 5000))
@settings(max_examples=30, deadline=None)
def test_samples_of_rss_are_bounded_and_say_how_it_goes_on(count: int) -> None:
    looks = History()
    for index in range(count):
        looks.sample(index * 0.05, index * MIB)
    assert len(looks._samples.kept) <= 512
    found = looks.rss_outlook(count * 0.05, count * MIB)
    assert found.trend == "growing" and found.whole is not None and abs(found.whole.mean - 20 * MIB) < MIB
