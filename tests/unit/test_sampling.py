"""Sampling by bytes: chances, what a sample stands for, and whether the intervals hold what they promise."""

from __future__ import annotations

import math
import random
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.bpf_source import bpf_directory
from tracer.model.blocks import Blocks
from tracer.model.sampling import CERTAIN, DEFAULT_SAMPLE_BYTES, Estimate, blocks_for, bytes_for, chance_of
from tracer.probes import layout

INTERVALS = st.integers(1, 1 << 30)
SIZES = st.integers(0, 1 << 31)


def test_one_is_everything() -> None:
    assert [chance_of(size, 1) for size in (0, 1, 8, 1 << 40)] == [CERTAIN] * 4


def test_certainty_is_the_kernels() -> None:
    header = (bpf_directory() / "memtrace.h").read_text(encoding="utf-8")
    assert [int(n) for n in re.findall(r"#define CERTAIN (\d+)", header)] == [CERTAIN] == [layout.CERTAIN]


@given(SIZES, INTERVALS)
def test_the_chance_is_that_of_a_poisson_process(size: int, interval: int) -> None:
    found = chance_of(size, interval) / CERTAIN
    expected = 1.0 if max(size, 1) >= interval else -math.expm1(-max(size, 1) / interval)
    # Whole numbers in the kernel: the smallest chances are off by some parts in 2^32.
    assert found == pytest.approx(expected, rel=1e-4, abs=8 / CERTAIN)


@given(SIZES, INTERVALS)
def test_a_sample_stands_for_its_size_divided_by_its_chance(size: int, interval: int) -> None:
    chance = chance_of(size, interval)
    if chance:
        assert bytes_for(size, chance) == pytest.approx(size * CERTAIN / chance, abs=0.5, rel=1e-12)
        assert blocks_for(chance) == CERTAIN / chance


def test_an_exact_sum_has_no_error() -> None:
    total = Estimate()
    for size in (1, 100, 7):
        total.add(size, CERTAIN)
    assert (total.bytes, total.count, total.error) == (108, 3, 0)


def sampled(sizes: list[int], interval: int, dice: random.Random) -> Estimate:
    total = Estimate()
    for size in sizes:
        chance = chance_of(size, interval)
        if dice.getrandbits(32) < chance:
            total.add(size, chance)
    return total


@pytest.mark.parametrize(
    ("sizes", "interval"),
    [
        ([200] * 3000, 8192),
        ([16, 64, 300, 1000, 5000, 20_000, 60_000] * 250, DEFAULT_SAMPLE_BYTES),
        ([DEFAULT_SAMPLE_BYTES - 1] * 200 + [DEFAULT_SAMPLE_BYTES] * 50, DEFAULT_SAMPLE_BYTES),
        ([2048] * 1024, 1 << 15),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(sizes: list[int], interval: int) -> None:
    """Over 1,000 rounds: 95 % give or take 2.1 % (three standard errors), and no bias."""
    dice = random.Random(sum(sizes))
    truth = sum(sizes)
    rounds = [sampled(sizes, interval, dice) for _ in range(1000)]
    held = sum(abs(each.bytes - truth) <= each.error for each in rounds) / len(rounds)
    assert 0.929 <= held <= 0.971
    spread = statistics.stdev(each.bytes for each in rounds)
    assert statistics.mean(each.bytes for each in rounds) == pytest.approx(truth, abs=3.5 * spread / 1000**0.5)
    counts = [each.count for each in rounds]
    assert statistics.mean(counts) == pytest.approx(len(sizes), abs=3.5 * statistics.stdev(counts) / 1000**0.5)


def test_a_leak_of_a_mebibyte_is_not_missed_by_default() -> None:
    missed = math.prod(1 - chance_of(256, DEFAULT_SAMPLE_BYTES) / CERTAIN for _ in range((1 << 20) // 256))
    assert missed < 1e-20


def test_sampled_blocks_by_stack() -> None:
    quarter = CERTAIN // 4
    rows = Blocks([100, 200, 300], [10, 20, 8], [1, 1, 2], [5, 6, 7], [quarter, CERTAIN, CERTAIN])
    assert not rows.exact
    assert rows.bytes_by_stack(range(3)) == {1: 60, 2: 8}
    assert rows.count_by_stack() == {1: 5, 2: 1}
    assert rows.resident_by_stack(range(3), [(105, 210)]) == {1: 20 + 10}
    errors = rows.error_by_stack()
    assert errors[2] == 0 and errors[1] == math.ceil(1.96 * math.sqrt(2 * 40 * 30))
    assert rows.error(range(3)) == errors[1] and rows.error(range(1, 3)) == 0


def test_blocks_without_chances_are_all_there() -> None:
    rows = Blocks([1, 2], [10, 20], [1, 1], [0, 0])
    assert rows.exact and rows.error_by_stack() == {1: 0} and rows.error(range(2)) == 0


def test_a_choice_of_blocks_keeps_their_columns() -> None:
    rows = Blocks([3, 1, 2], [30, 10, 20], [1, 1, 2], [9, 8, 7], [CERTAIN // 2, CERTAIN, CERTAIN])
    some = rows.where(lambda i: rows.stacks[i] == 1)
    assert list(some.addresses) == [1, 3] and list(some.chances) == [CERTAIN, CERTAIN // 2]
    assert some.bytes_by_stack(range(2)) == {1: 10 + 60}
