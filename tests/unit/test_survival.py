"""What is left of blocks from short windows, against lives that are simulated block by block."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tracer.model.blocks import Blocks
from tracer.model.sampling import CERTAIN
from tracer.model.survival import (
    Window,
    estimate_survivors,
    lasting_share,
    lived_through_gap,
    probed_share,
    share_left,
    sort_out,
    stands_for_time,
)

SECOND = 1_000_000_000
# 20 ms in each second, for 20 s.
WINDOWS = [Window(k * SECOND, k * SECOND + SECOND // 50) for k in range(20)]
NOW = 20 * SECOND


def test_shares_of_time() -> None:
    assert probed_share(WINDOWS, 0, NOW) == pytest.approx(0.02)
    assert probed_share([Window(0)], 0, NOW) == 1.0
    assert probed_share([], 0, 0) == 1.0


def test_what_lived_through_a_gap() -> None:
    assert lived_through_gap(WINDOWS, 19 * SECOND + 1, NOW), "the probes are off now"
    on = [Window(0, SECOND), Window(2 * SECOND)]
    assert lived_through_gap(on, SECOND // 2, NOW) and not lived_through_gap(on, 2 * SECOND, NOW)


def test_a_window_stands_for_the_gap_before_it() -> None:
    assert stands_for_time(5 * SECOND + 1, WINDOWS, NOW) == pytest.approx(50)
    assert stands_for_time(1, WINDOWS, NOW) == 1.0, "before the first window there was no gap"
    still_in = [Window(0, SECOND), Window(2 * SECOND)]
    assert stands_for_time(3 * SECOND, still_in, 20 * SECOND) == pytest.approx(19 / 18)


def simulate(rate: float, life: Callable[[random.Random], float], seed: int) -> tuple[Blocks, int, float]:
    """Blocks made at ``rate`` a second: those still in the table at the end, late frees, and how many really live."""
    dice = random.Random(seed)
    births: list[int] = []
    late, alive, when = 0, 0, 0.0
    while when < 20:
        when += dice.expovariate(rate)
        death = when + life(dice)
        alive += death > 20
        index = int(when)
        if index > 19 or when - index > 0.02:
            continue
        seen_dead = death < 20 and death - int(death) < 0.02
        if not seen_dead:
            births.append(int(when * SECOND))
        elif int(death) > index:
            late += 1
    size = 100
    blocks = Blocks([16 * i for i in range(len(births))], [size] * len(births), [7] * len(births), births)
    return blocks, late, alive * size


def estimated(blocks: Blocks, late: int) -> float:
    survivors = estimate_survivors(blocks, Blocks([], [], [], []), {7: late}, WINDOWS, NOW)
    return survivors.within(0, 1 << 40).get(7, 0.0)


def test_a_leak_is_whole() -> None:
    blocks, late, truth = simulate(2000, lambda _: 1e9, seed=1)
    assert late == 0
    # The 19 windows after the first stand for all but the first second.
    assert estimated(blocks, late) == pytest.approx(truth, rel=0.12)


def test_blocks_of_a_busy_loop_are_gone() -> None:
    """Each lives for a millisecond; some are always left when a window ends, and are freed in a later one or unseen."""
    blocks, _, truth = simulate(50_000, lambda dice: dice.expovariate(1000), seed=2)
    # In the gap they die unseen, but whoever gets their addresses frees these in the next window.
    survivors = estimated(blocks, late=len(blocks))
    assert truth < 20_000 and survivors < 0.002 * 50_000 * 20 * 100


@pytest.mark.parametrize("mean", [2.0, 5.0])
def test_blocks_that_live_for_a_while(mean: float) -> None:
    """In a steady state as much lives as is made in a mean life, not what was ever made (10 and 4 times as much)."""
    blocks, late, truth = simulate(20_000, lambda dice: dice.expovariate(1 / mean), seed=3)
    ever = 20_000 * 20 * 100
    assert late > 5
    assert estimated(blocks, late) <= truth + 0.1 * ever


def test_a_leak_among_blocks_that_go() -> None:
    """Half of what the stack makes stays: the estimate is below that, and not by much where there are many."""
    blocks, late, truth = simulate(20_000, lambda dice: 1e9 if dice.random() < 0.5 else dice.expovariate(0.5), seed=5)
    assert 0.5 * truth < estimated(blocks, late) < 1.1 * truth


def test_few_frees_tell_little() -> None:
    assert share_left(1000, 0, 0.02) == 1.0
    assert share_left(1000, 100, 0.02) == 0.0
    # Two frees of a thousand blocks: a hundred deaths, and hardly more than 241.
    assert share_left(1000, 2, 0.02) == pytest.approx(1 - 239 / 1000, abs=0.01)
    assert share_left(10, 1, 0.0) == 0.0 and share_left(0, 5, 0.5) == 1.0


THREE = Blocks([16, 32, 48], [10, 20, 30], [1, 1, 2], [1, SECOND // 2, 3 * SECOND], [CERTAIN // 2, CERTAIN, CERTAIN])
GAP = [Window(0, SECOND), Window(2 * SECOND)]


def test_without_a_witness_what_lived_through_a_gap_is_unverified() -> None:
    for verify in (None, lambda _: None):
        known = sort_out(THREE, GAP, NOW, verify)
        assert list(known.live.addresses) == [48]
        assert known.unverified is not None and list(known.unverified.addresses) == [16, 32]
        assert known.verified is not None and not len(known.verified)


def test_the_allocator_is_asked_for_what_lived_through_a_gap() -> None:
    asked = []

    def verify(addresses: list[int]) -> set[int]:
        asked.extend(addresses)
        return {32}

    known = sort_out(THREE, GAP, NOW, verify)  # type: ignore[arg-type]
    assert asked == [16, 32]
    assert list(known.live.addresses) == [32, 48]
    assert known.verified is not None and list(known.verified.addresses) == [32]
    assert known.unverified is not None and not len(known.unverified)


def test_verified_blocks_stand_for_the_unseen_ones_only() -> None:
    verified = Blocks([16], [10], [1], [5 * SECOND + 1], [CERTAIN // 2])
    survivors = estimate_survivors(Blocks([], [], [], []), verified, {1: 99}, WINDOWS, NOW)
    assert survivors.within(0, 100) == {1: pytest.approx(20 * 49)}
    assert survivors.within(17, 100) == {}


def verified_in(counts: list[int]) -> Blocks:
    """So many live blocks of 100 bytes out of each window."""
    births = [k * SECOND + 1 for k, count in enumerate(counts) for _ in range(count)]
    return Blocks([16 * i for i in range(len(births))], [100] * len(births), [7] * len(births), births)


def stood_for(blocks: Blocks, late: int, passing: tuple[int, ...] = ()) -> float:
    survivors = estimate_survivors(Blocks([], [], [], []), blocks, {7: late}, WINDOWS, NOW, passing)
    return survivors.within(0, 1 << 40).get(7, 0.0)


def test_blocks_of_the_last_windows_alone_do_not_stand_for_the_gaps() -> None:
    """A busy loop's blocks are found live when the last window ends: their addresses are in use, now and always."""
    assert stood_for(verified_in([0] * 19 + [80]), late=1500) == 0.0
    steady = verified_in([4] * 20)
    assert stood_for(steady, late=0) == pytest.approx(19 * 4 * 49 * 100)
    # Beside a leak of the same stack they add nothing, and take nothing away.
    mixed = stood_for(verified_in([4] * 19 + [84]), late=1500)
    assert mixed == pytest.approx(stood_for(steady, late=0), rel=0.1)


def test_blocks_of_one_window_alone_do_not_stand_for_gaps_though_nobody_freed_one() -> None:
    assert stood_for(verified_in([0] * 19 + [27]), late=0) == 0.0
    assert stood_for(verified_in([0] * 18 + [27, 27]), late=0, passing=(7,)) == 0.0
    assert stood_for(verified_in([0] * 18 + [27, 27]), late=0) > 0.0


def test_a_leak_that_began_late_stands_for_its_gaps() -> None:
    assert stood_for(verified_in([0] * 15 + [4] * 5), late=0) == pytest.approx(5 * 4 * 49 * 100)


def test_a_share_that_lasts() -> None:
    assert lasting_share(verified_in([1] * 20), [], NOW) == {}
    assert lasting_share(verified_in([1] * 20), WINDOWS, NOW) == {7: pytest.approx(1.0)}
    assert lasting_share(verified_in([1] * 10 + [3] * 10), WINDOWS, NOW) == {7: pytest.approx(0.5)}
