"""The arithmetic of watching: thinned series, slopes, private memory, regions, verdicts and projections."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.watches import KIB, MIB, anon, of_file
from tracer.model.private import PrivateSeries
from tracer.model.regions import compare, occupied, private, totals_by_class
from tracer.model.slope import Slope, fit_slope
from tracer.model.thinned import Thinned
from tracer.model.vma import VmaUsage
from tracer.model.watch import MemoryLimit
from tracer.model.watch_verdict import WatchFindings, judge_watch, project

PAGE = 4 * KIB


class TestThinned:
    @given(st.integers(1, 2000), st.integers(2, 40))
    def test_keeps_first_and_newest_in_even_distances(self, count: int, limit: int) -> None:
        series: Thinned[int] = Thinned(limit)
        for item in range(count):
            series.add(item)
        kept = series.items()
        assert (kept[0], kept[-1], series.seen) == (0, count - 1, count)
        assert len(kept) <= limit + 1
        steps = [b - a for a, b in pairwise(kept)]
        assert len(set(steps[:-1])) <= 1
        assert count <= limit or len(kept) >= limit // 2

    def test_nothing(self) -> None:
        assert Thinned[int](3).items() == []


class TestSlope:
    @given(st.floats(-1e6, 1e6), st.integers(3, 50), st.floats(0, 1e9))
    def test_a_straight_line_is_found(self, slope: float, count: int, first: float) -> None:
        found = fit_slope([(float(t), first + slope * t) for t in range(count)])
        assert found is not None
        assert math.isclose(found.per_second, slope, rel_tol=1e-4, abs_tol=1e-3)
        assert found.error < 1e-3 + 1e-6 * abs(first)

    @pytest.mark.parametrize("points", [[], [(0.0, 1.0)], [(0.0, 1.0), (1.0, 2.0)], [(1.0, 1.0)] * 5])
    def test_too_little(self, points: list[tuple[float, float]]) -> None:
        assert fit_slope(points) is None

    def test_the_margin_holds_for_noise(self) -> None:
        """In 95 of 100 cases the true slope is within the margin."""
        within = 0
        for seed in range(400):
            noise = random.Random(seed)
            found = fit_slope([(float(t), 5.0 * t + noise.gauss(0, 40)) for t in range(60)])
            assert found is not None
            within += abs(found.per_second - 5.0) <= found.margin
        assert within / 400 > 0.9

    def test_waves_widen_the_margin(self) -> None:
        wave = [(float(t), 100.0 * math.sin(t / 10)) for t in range(60)]
        noise = random.Random(1)
        shuffled = [(t, value) for (t, _), (_, value) in zip(wave, noise.sample(wave, len(wave)), strict=True)]
        one, other = fit_slope(wave), fit_slope(shuffled)
        assert one is not None and other is not None
        assert one.error > 2 * other.error
        assert not one.is_positive


class TestPrivateSeries:
    def test_without_exact_readings_it_is_the_cheap_figure(self) -> None:
        series = PrivateSeries()
        series.add(0.0, 100)
        series.add(1.0, 130)
        assert (series.points(), series.exact_count) == ([(0.0, 100), (1.0, 130)], 0)

    def test_exact_readings_are_met_and_the_difference_moves_evenly_between_them(self) -> None:
        series = PrivateSeries()
        series.add(0.0, 100, 80)
        for second in range(1, 4):
            series.add(float(second), 100)
        series.add(4.0, 100, 40)
        series.add(5.0, 120)
        assert series.points() == [(0.0, 80), (1.0, 70), (2.0, 60), (3.0, 50), (4.0, 40), (5.0, 60)]
        assert (series.newest(), series.exact_count) == (60, 2)

    def test_it_does_not_fall_below_zero(self) -> None:
        series = PrivateSeries()
        series.add(0.0, 100, 10)
        series.add(1.0, 20)
        assert series.newest() == 0

    def test_nothing(self) -> None:
        assert PrivateSeries().newest() == 0


class TestAmounts:
    def test_swap_of_shared_memory_is_the_objects(self) -> None:
        usage = anon(PAGE, 2 * PAGE, swap=PAGE)
        assert (occupied(usage), private(usage)) == (3 * PAGE, 3 * PAGE)
        shared = VmaUsage(of_file(PAGE, 8 * PAGE).vma, 2 * PAGE, swap=PAGE)
        assert occupied(shared) == 3 * PAGE  # a private mapping of a file
        vma = type(shared.vma)(0, PAGE, "rw-s", 0, "00:01", 5, b"/dev/zero (deleted)")
        assert occupied(VmaUsage(vma, PAGE, swap=PAGE)) == PAGE

    def test_totals(self) -> None:
        usages = [anon(PAGE, PAGE), anon(8 * PAGE, 2 * PAGE), of_file(99 * PAGE, PAGE)]
        classes = {PAGE: "heap", 99 * PAGE: "file"}
        assert totals_by_class(usages, classes, occupied) == {"heap": PAGE, "anonymous": 2 * PAGE, "file": PAGE}


def vmas(cuts: list[int], filled: list[bool], pages: list[int]) -> list[VmaUsage]:
    """VMAs between the cuts, where filled."""
    usages = []
    for low, high, there, rss in zip(cuts, cuts[1:], filled, pages, strict=False):
        if there and high > low:
            usages.append(anon(low * PAGE, min(rss, high - low) * PAGE, (high - low) * PAGE))
    return usages


LAYOUTS = st.builds(
    vmas,
    st.lists(st.integers(1, 60), min_size=2, max_size=12, unique=True).map(sorted),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.lists(st.integers(0, 20), min_size=12, max_size=12),
)


class TestRegions:
    @given(LAYOUTS, LAYOUTS)
    def test_growth_adds_up_and_every_vma_is_in_one_region(self, before: list[VmaUsage], after: list[VmaUsage]) -> None:
        regions = compare(before, after, {}, with_private=True)
        grown = sum(map(occupied, after)) - sum(map(occupied, before))
        assert sum(region.growth for region in regions) == grown
        assert sum(region.private_growth or 0 for region in regions) == grown
        assert sum(region.vmas for region in regions) == len(after)
        for one, other in pairwise(regions):
            assert one.end <= other.start

    @given(LAYOUTS)
    def test_nothing_changed(self, layout: list[VmaUsage]) -> None:
        regions = compare(layout, layout, {}, with_private=False)
        assert [region.growth for region in regions] == [0] * len(layout)
        assert all(region.private_growth is None for region in regions)

    def test_a_split_and_a_merge_are_no_growth(self) -> None:
        whole, halves = [anon(0x1000, 8 * PAGE)], [anon(0x1000, 4 * PAGE), anon(0x5000, 4 * PAGE)]
        (split,) = compare(whole, halves, {}, with_private=False)
        (merged,) = compare(halves, whole, {}, with_private=False)
        assert (split.growth, split.vmas, merged.growth, merged.vmas) == (0, 2, 0, 1)

    def test_what_is_gone_shows_what_it_was(self) -> None:
        (gone,) = compare([anon(0x1000, PAGE)], [], {0x1000: "heap"}, with_private=False)
        assert (gone.vmas, gone.after, gone.growth, gone.vma_class, gone.start) == (0, 0, -PAGE, "heap", 0x1000)

    def test_the_largest_vma_names_the_region(self) -> None:
        before = [anon(0x1000, PAGE, 0x9000)]
        after = [anon(0x1000, PAGE), of_file(0x2000, 4 * PAGE)]
        (region,) = compare(before, after, {0x1000: "heap", 0x2000: "file"}, with_private=False)
        assert (region.vma_class, region.path, region.perms) == ("file", b"/usr/lib/libx.so", "r--p")


def findings(values: list[int], step: float = 1.0, **more: int) -> WatchFindings:
    points = [(index * step, value) for index, value in enumerate(values)]
    return WatchFindings(points, len(points), more.pop("exact", len(points)), **more)


def ramp(count: int, by: int, first: int = 10 * MIB) -> list[int]:
    return [first + index * by for index in range(count)]


class TestVerdict:
    @pytest.mark.parametrize(
        ("values", "step", "kind"),
        [
            ([], 1.0, "unknown"),
            (ramp(4, MIB), 1.0, "unknown"),
            (ramp(10, MIB), 0.1, "unknown"),
            (ramp(5, MIB), 1.0, "growing"),
            (ramp(30, MIB), 1.0, "growing"),
            ([10 * MIB] * 30, 1.0, "not-growing"),
            (ramp(30, -MIB, 100 * MIB), 1.0, "not-growing"),
            (ramp(30, 30 * KIB), 1.0, "not-growing"),  # less than 1 MiB
            (ramp(400, 10 * KIB, 10_000 * MIB), 10.0, "not-growing"),  # less than 1 % and 256 KiB a minute
            (ramp(400, 100 * KIB, 1000 * MIB), 10.0, "growing"),  # 600 KiB a minute, 4 % in an hour
            ([*ramp(10, 5 * MIB), *[60 * MIB] * 20], 1.0, "levelled-off"),
            ([10 * MIB] * 14 + [60 * MIB] * 16, 1.0, "levelled-off"),  # one step, long ago
            ([10 * MIB] * 28 + [60 * MIB] * 2, 1.0, "unknown"),  # one step, just now
            ([10 * MIB + 20 * MIB * (index % 6) for index in range(60)], 1.0, "not-growing"),  # a collector's teeth
            ([index * 4 * MIB + 10 * MIB * (index % 6) for index in range(60)], 1.0, "growing"),  # teeth that rise
        ],
    )
    def test_kinds(self, values: list[int], step: float, kind: str) -> None:
        assert judge_watch(findings(values, step)).kind == kind

    def test_the_sentence_of_growth(self) -> None:
        verdict = judge_watch(findings(ramp(31, 2 * MIB), rss_growth=60 * MIB))
        assert verdict.text == ("private memory grew 60.0 MiB in 30 s and still grows: 2.0 MiB/s, give or take 0 B/s")
        assert verdict.evidence == (
            "private memory is Private_Dirty + Swap, read 31 times",
            "the last third of the time brought 33 % of its growth",
            "RSS grew 60.0 MiB",
        )

    def test_the_rate_is_that_of_the_second_half(self) -> None:
        verdict = judge_watch(findings([*ramp(16, 4 * MIB), *ramp(15, MIB, 71 * MIB)]))
        assert verdict.kind == "growing" and verdict.recent is not None and verdict.slope is not None
        assert verdict.recent.per_second == pytest.approx(MIB)
        assert verdict.slope.per_second > 2 * MIB
        assert "1.0 MiB/s" in verdict.text

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ([10 * MIB] * 9, "does not grow: it stayed the same in 8.0 s"),
            (ramp(9, -MIB, 99 * MIB), "does not grow: it shrank by 8.0 MiB in 8.0 s"),
            ([*ramp(10, 5 * MIB), *[60 * MIB] * 20], "grew 50.0 MiB in 29 s, but has levelled off"),
            ([10 * MIB] * 28 + [60 * MIB] * 2, "ups and downs too large"),
            (ramp(2, MIB), "not enough data for a verdict: 2 looks in 1.0 s; watch longer"),
        ],
    )
    def test_other_sentences(self, values: list[int], words: str) -> None:
        assert words in judge_watch(findings(values)).text

    @pytest.mark.parametrize(
        ("exact", "words"),
        [(30, "Swap, read 30 times"), (7, "read 7 times; in between followed by RssAnon"), (0, "was not read")],
    )
    def test_how_private_memory_was_found(self, exact: int, words: str) -> None:
        assert words in judge_watch(findings(ramp(30, MIB), exact=exact)).evidence[0]

    def test_growth_that_is_not_its_own(self) -> None:
        verdict = judge_watch(findings([MIB] * 9, rss_growth=9 * MIB, file_growth=5 * MIB, shared_growth=4 * MIB))
        assert verdict.kind == "not-growing"
        assert verdict.evidence[1:] == (
            "RSS grew 9.0 MiB",
            "5.0 MiB of it are file pages, which the kernel can drop",
            "4.0 MiB of it is shared memory",
        )


class TestProjection:
    LIMITS = (MemoryLimit("host", 8000 * MIB, 4000 * MIB), MemoryLimit("cgroup", 500 * MIB, 100 * MIB))

    def test_the_nearest_limit_counts(self) -> None:
        projection = project(Slope(10.0 * MIB, 1.0 * MIB), self.LIMITS)
        assert projection is not None
        assert (projection.limit.name, projection.seconds) == ("cgroup", 10.0)
        assert projection.earliest == pytest.approx(100 / 12)
        assert projection.latest == pytest.approx(100 / 8)

    @pytest.mark.parametrize("slope", [None, Slope(0.0, 0.0), Slope(-5.0, 0.0), Slope(5.0, 3.0)])
    def test_none_where_it_does_not_surely_grow(self, slope: Slope | None) -> None:
        assert project(slope, self.LIMITS) is None

    def test_none_where_there_is_no_limit_or_none_in_sight(self) -> None:
        assert project(Slope(5.0, 0.0), ()) is None
        assert project(Slope(1.0, 0.0), self.LIMITS) is None  # three years

    def test_the_latest_may_be_out_of_sight(self) -> None:
        projection = project(Slope(1000.0, 499.9999), self.LIMITS)
        assert projection is not None and projection.latest is None

    def test_a_limit_that_is_used_up(self) -> None:
        projection = project(Slope(5.0, 0.0), (MemoryLimit("cgroup", 500, 0),))
        assert projection is not None and projection.seconds == 0
