"""Rates and their errors against quantities whose rate is known, and what follows for how they go on."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.model.rates import MIN_RATE, MIN_SECONDS, Outlook, outlook, rate_of

MIB = 1 << 20
Course = Callable[[float], float]


def looks(course: Course, seconds: float = 30, each: float = 0.25) -> list[tuple[float, float]]:
    return [(index * each, course(index * each)) for index in range(round(seconds / each) + 1)]


@given(st.floats(-1e9, 1e9), st.integers(4, 500), st.floats(0.01, 1e4))
def test_a_straight_line_has_its_rate_and_no_error(rate: float, count: int, each: float) -> None:
    found = rate_of([(index * each, rate * index * each) for index in range(count)])
    assert found is not None
    assert found.mean == pytest.approx(rate, rel=1e-6, abs=1e-6)
    # The looks may not fall on the edges of the parts: then one part lacks what the next has too much.
    assert found.error <= abs(rate) * 4 + 1e-6


def test_too_few_looks_have_no_rate() -> None:
    assert rate_of([]) is None and rate_of([(0, 0), (1, 1), (2, 2)]) is None
    assert rate_of([(1, 5)] * 9) is None


def test_the_interval_holds_the_rate_as_often_as_it_says() -> None:
    """A walk by chance with drift: 1,000 of them, drawn from a fixed seed."""
    chance = random.Random(4711)
    held = 0
    for _ in range(1000):
        size, samples = 0.0, [(0.0, 0.0)]
        for step in range(1, 201):
            size += chance.gauss(100, 400)
            samples.append((step * 0.1, size))
        found = rate_of(samples)
        assert found is not None
        held += found.low <= 1000 <= found.high
    assert 930 <= held <= 970


def test_the_rate_is_not_biased() -> None:
    chance = random.Random(1)
    means = []
    for _ in range(300):
        samples, size = [], 0.0
        for step in range(100):
            samples.append((step * 0.1, size))
            size += chance.choice((0, 0, 0, 4000))
        found = rate_of(samples)
        assert found is not None
        means.append(found.mean)
    assert statistics.fmean(means) == pytest.approx(10_000, rel=0.03)


def step_up(seconds: float) -> float:
    """128 KiB at a time, as brk grows."""
    return seconds * 100_000 // (128 << 10) * (128 << 10)


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        (lambda t: t * MIB, "growing"),
        (step_up, "growing"),
        (lambda t: 100 * MIB + max(0, t - 1) * MIB if t > 0 else 0, "growing"),  # a warm-up, and a leak behind it
        (lambda t: min(t, 5) * MIB, "levelled-off"),
        (lambda t: 64 * MIB * (1 - 0.5**t), "levelled-off"),
        (lambda t: min(t, 5) * MIB + t * 4000, "levelled-off"),  # what goes on is too little to matter
        (lambda t: (t > 0) * 100 * MIB, "levelled-off"),
        (lambda t: 0.0, "steady"),
        (lambda t: -t * MIB, "steady"),
        (lambda t: (t >= 29) * 50 * MIB, "unknown"),  # one step at the very end: it may go on, or not
        (lambda t: t * MIB if t < 15 else (15 + (int(t) % 2) * 8) * MIB, "unknown"),
    ],
)
def test_how_it_goes_on(course: Course, expected: str) -> None:
    assert outlook(looks(course)).trend == expected


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e12)), max_size=60))
def test_any_looks_have_an_outlook(samples: list[tuple[float, float]]) -> None:
    found = outlook(sorted(samples))
    assert found.trend in ("growing", "levelled-off", "steady", "unknown")


def test_a_short_window_says_nothing() -> None:
    assert outlook(looks(lambda t: t * MIB, MIN_SECONDS - 0.1, 0.1)) == Outlook("unknown")
    assert outlook(looks(lambda t: t * MIB, MIN_SECONDS, 0.1)).trend == "growing"
    assert outlook(looks(lambda t: t * MIB, 30, 4)) == Outlook("unknown")


def test_the_least_rate_that_counts() -> None:
    assert outlook(looks(lambda t: t * MIN_RATE * 1.01)).trend == "growing"
    assert outlook(looks(lambda t: t * MIN_RATE * 0.99)).trend == "levelled-off"


def test_few_looks_at_uneven_distances_make_no_error() -> None:
    """Looks come some milliseconds late: what grows evenly has an even rate all the same."""
    samples = [(second + 0.003 * second, 1e6 * (second + 0.003 * second)) for second in range(7)]
    samples[3] = (3.4, 3.4e6)
    rate = rate_of(samples)
    assert rate is not None
    assert rate.mean == pytest.approx(1e6) and rate.error == pytest.approx(0, abs=1)
