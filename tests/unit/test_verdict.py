"""Each rule of the verdict, at its edges, and the sentence that it becomes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.reports import STORE
from tracer.model.rates import Outlook, Rate, Trend
from tracer.model.report import LedgerRow, StackGrowth, VerdictKind
from tracer.model.verdict import Findings, judge

KIB, MIB = 1 << 10, 1 << 20
A, B = "000000000000000a", "000000000000000b"


def row(name: str, cause: str, size: float, stack: str | None = None) -> LedgerRow:
    return LedgerRow(name, cause, stack, int(size * MIB))


def findings(
    *ledger: LedgerRow,
    growth: float | None = None,
    rss_start: float = 100,
    seconds: float = 30,
    trend: Trend = "growing",
    stacks: tuple[StackGrowth, ...] = (),
) -> Findings:
    """Sizes in MiB; the growth is the sum of the ledger unless it is given."""
    total = sum(entry.bytes for entry in ledger) if growth is None else int(growth * MIB)
    rates = (Rate(total / seconds, 1024), Rate(total / seconds, 2048)) if seconds > 3 else (None, None)
    return Findings(int(rss_start * MIB), total, seconds, Outlook(trend, *rates), ledger, stacks)


def kind(*ledger: LedgerRow, **more: Any) -> VerdictKind:
    return judge(findings(*ledger, **more)).kind


LIVE = row("heap", "live", 10, A)


def test_not_growing() -> None:
    assert kind(growth=0) == "not-growing"
    assert kind(growth=-5) == "not-growing"
    assert kind(LIVE, growth=1 - 1 / KIB) == "not-growing"
    assert kind(LIVE, growth=1) == "leak"


@pytest.mark.parametrize(
    ("rss_start", "seconds", "expected"),
    [
        (1000, 3600, "not-growing"),  # less than 1 %, and less than 256 KiB a minute
        (1000, 60, "leak"),  # less than 1 %, but fast
        (100, 3600, "leak"),  # slow, but a large share
    ],
)
def test_slow_growth(rss_start: float, seconds: float, expected: VerdictKind) -> None:
    assert kind(row("heap", "live", 5, A), rss_start=rss_start, seconds=seconds) == expected


def test_the_edges_of_slow_growth() -> None:
    fifteen, less = row("heap", "live", 15, A), row("heap", "live", 15 - 1 / KIB, A)
    assert kind(less, rss_start=10_000, seconds=3600) == "not-growing", "256 KiB a minute are 15 MiB an hour"
    assert kind(fifteen, rss_start=10_000, seconds=3600) == "leak"
    assert kind(less, rss_start=1_500, seconds=36_000) == "not-growing"
    assert kind(fifteen, rss_start=1_500, seconds=36_000) == "leak", "1 % is not less than 1 %"


@pytest.mark.parametrize(
    ("name", "cause", "expected"),
    [
        ("file", "faulted", "file-cache"),
        ("file", "mapped", "file-cache"),
        ("file", "unexplained", "file-cache"),
        ("stack", "faulted", "stacks"),
        ("thread stack", "faulted", "stacks"),
        ("heap", "kept-by-allocator", "retention"),
        ("anonymous", "kept-by-allocator", "retention"),
        ("heap", "live", "leak"),
        ("anonymous", "mapped", "leak"),
        ("anonymous", "faulted", "leak"),
        ("shared memory", "faulted", "leak"),
    ],
)
def test_what_makes_up_more_than_half(name: str, cause: str, expected: VerdictKind) -> None:
    other = "unexplained" if expected == "leak" else "live"
    assert kind(row(name, cause, 6), row("jit", other, 4)) == expected
    assert kind(row(name, cause, 5), row("jit", other, 5)) != expected, "half is not more than half"


@pytest.mark.parametrize(("name", "cause"), [("anonymous", "unexplained"), ("memtrace", "memtrace")])
def test_growth_without_a_cause_is_no_leak(name: str, cause: str) -> None:
    assert kind(row(name, cause, 6), row("heap", "live", 4, A)) == "unknown"


def test_stacks_of_both_classes_count_together() -> None:
    assert kind(row("stack", "faulted", 3), row("thread stack", "faulted", 3), row("heap", "live", 4)) == "stacks"


def test_the_order_of_the_rules() -> None:
    """What kind of memory it is comes before how it goes on."""
    for trend in ("growing", "levelled-off", "unknown"):
        assert kind(row("file", "faulted", 10), trend=trend) == "file-cache"
        assert kind(row("heap", "kept-by-allocator", 10), trend=trend) == "retention"


@pytest.mark.parametrize(
    ("trend", "expected"),
    [("growing", "leak"), ("levelled-off", "plateau"), ("steady", "plateau"), ("unknown", "unknown")],
)
def test_the_trend_decides(trend: Trend, expected: VerdictKind) -> None:
    assert kind(LIVE, trend=trend) == expected


def test_levelled_off_growth_without_a_cause_is_no_plateau() -> None:
    assert kind(row("anonymous", "unexplained", 10), trend="levelled-off") == "unknown"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            findings(row("heap", "live", 20, A), row("heap", "live", 10, B), row("heap", "kept-by-allocator", 6)),
            "RSS grew 36.0 MiB in 30 s (1.2 MiB/s): 30.0 MiB in 2 call stacks, 6.0 MiB kept by malloc, "
            "0 B unexplained (still growing: looks like a leak)",
        ),
        (
            findings(row("anonymous", "mapped", 3, A), row("anonymous", "unexplained", 0.5), trend="levelled-off"),
            "RSS grew 3.5 MiB in 30 s (119.5 KiB/s): 3.0 MiB in 1 call stack, 512.0 KiB unexplained "
            "(growth has levelled off: a cache or warm-up rather than a leak)",
        ),
        (
            findings(row("heap", "live", 4, A), row("heap", "reused", -1), row("anonymous", "released", -2), growth=1),
            "RSS grew 1.0 MiB in 30 s (34.1 KiB/s): 4.0 MiB in 1 call stack, 1.0 MiB of it in memory already resident, "
            "2.0 MiB given back, 0 B unexplained (still growing: looks like a leak)",
        ),
        (
            findings(row("heap", "kept-by-allocator", 9), row("memtrace", "memtrace", 1)),
            "RSS grew 10.0 MiB in 30 s (341.3 KiB/s): 0 B in 0 call stacks, 9.0 MiB kept by malloc, "
            "1.0 MiB memtrace's own, 0 B unexplained "
            "(memory freed but kept by the allocator: fragmentation rather than a leak)",
        ),
        (
            findings(row("file", "faulted", 8, A)),
            "RSS grew 8.0 MiB in 30 s (273.1 KiB/s): 8.0 MiB in 1 call stack, 0 B unexplained "
            "(file pages: they can be reclaimed)",
        ),
        (
            findings(row("thread stack", "faulted", 8, A)),
            "RSS grew 8.0 MiB in 30 s (273.1 KiB/s): 8.0 MiB in 1 call stack, 0 B unexplained (thread stacks)",
        ),
        (
            findings(row("heap", "live", 8, A), seconds=2, trend="unknown"),
            "RSS grew 8.0 MiB in 2.0 s (4.0 MiB/s): 8.0 MiB in 1 call stack, 0 B unexplained "
            "(not enough data for a verdict: trace longer)",
        ),
        (findings(growth=-3), "RSS shrank by 3.0 MiB in 30 s (not growing)"),
        (findings(growth=0), "RSS grew 0 B in 30 s (0 B/s) (not growing)"),
    ],
)
def test_the_sentence(given: Findings, text: str) -> None:
    assert judge(given).text == text


def test_a_stack_with_several_causes_is_one_stack() -> None:
    text = judge(findings(row("heap", "live", 2, A), row("malloc arena", "live", 2, A))).text
    assert "4.0 MiB in 1 call stack," in text


def test_a_stack_that_gave_back_more_than_it_took_is_none_that_grew() -> None:
    assert "1.0 MiB in 1 call stack," in judge(findings(row("jit", "faulted", 2, A), row("jit", "faulted", -1, B))).text


def test_what_has_no_stack_is_in_the_sentence_too() -> None:
    text = judge(findings(row("heap", "live", 4), row("heap", "live", 2, A))).text
    assert "RSS grew 6.0 MiB" in text and ("4.0 MiB" in text or "6.0 MiB in" in text.partition(":")[2])


def test_a_window_of_no_length() -> None:
    assert "in 0 s (0 B/s)" in judge(findings(LIVE, seconds=0)).text


def test_the_evidence() -> None:
    stacks = (STORE, replace(STORE, trend="steady"))
    evidence = judge(findings(LIVE, stacks=stacks)).evidence
    assert evidence[:2] == (
        "RSS over the window: growing (341.3 KiB/s +- 1.0 KiB/s; in its second half 341.3 KiB/s +- 2.0 KiB/s; "
        "95 % intervals)",
        "1 of 2 stacks with live allocations still grow",
    )
    assert len(evidence) == 3 and evidence[2].endswith("% was freed again")
    assert judge(findings(LIVE, seconds=2.9)).evidence[-1] == "the window was shorter than 3 s"
    assert len(judge(findings(LIVE, seconds=3)).evidence) == 1


def test_the_evidence_of_what_was_freed() -> None:
    stack = replace(STORE, allocated_bytes=200, freed_bytes=200)
    assert judge(findings(LIVE, stacks=(stack,))).evidence[-1] == (
        "of what the growing stacks allocated, 100.0 % was freed again"
    )


def test_the_evidence_of_what_survived() -> None:
    stack = replace(STORE, survival=0.93)
    assert judge(findings(LIVE, stacks=(stack,))).evidence[-1] == (
        "of what they held in the middle of the window, 93.0 % is still live"
    )


@pytest.mark.parametrize(("survival", "expected"), [(None, "leak"), (0.5, "leak"), (0.49, "unknown")])
def test_what_is_freed_as_it_ages_is_no_leak_yet(survival: float | None, expected: VerdictKind) -> None:
    stacks = (replace(STORE, survival=survival), replace(STORE, survival=0.0, trend="steady"))
    verdict = judge(findings(LIVE, stacks=stacks))
    assert verdict.kind == expected
    assert ("queue or cache" in verdict.text) == (expected == "unknown")


def test_the_survival_is_weighed_by_bytes() -> None:
    stacks = (replace(STORE, bytes=3 * MIB, survival=1.0), replace(STORE, bytes=MIB, survival=0.0))
    assert findings(LIVE, stacks=stacks).survival == 0.75


@pytest.mark.parametrize(
    ("kept", "live", "trend", "expected"),
    [
        (4, 3, "levelled-off", "retention"),
        (4, 3, "growing", "leak"),
        (3, 4, "levelled-off", "plateau"),
        (3, 2, "levelled-off", "plateau"),  # less than a third of the growth
    ],
)
def test_retention_once_it_has_levelled_off(kept: int, live: int, trend: Trend, expected: VerdictKind) -> None:
    other = row("anonymous", "mapped", 10 - kept - live, A)
    given = [row("heap", "freed", kept - 1), row("heap", "metadata", 1), row("heap", "live", live, A), other]
    assert kind(*given, trend=trend) == expected


def test_an_uncertain_course_says_so() -> None:
    assert "no verdict with 95 % confidence" in judge(findings(LIVE, trend="unknown")).text
    assert "no cause is known" in judge(findings(row("jit", "unexplained", 9))).text
