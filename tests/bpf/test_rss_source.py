"""Other sources of RSS changes than the kernel's counters: the books close with them, too, and the report says so."""

from __future__ import annotations

import pytest

from tests.bpf.conftest import StartTarget
from tests.bpf.harness import Json, Memtrace, totals_by_function

pytestmark = pytest.mark.bpf


def traced(start_target: StartTarget, source: str) -> tuple[Json, Json]:
    target = start_target("fault_runs", 600, 1, 1)
    tracing = Memtrace(target.pid, "--rss-source", source)
    truth = target.go()["stacks"]
    report = tracing.stop().required_report()
    assert report["rss_source"] == source
    assert sum(row["bytes"] for row in report["ledger"]) == report["rss"]["growth"]
    return report, truth


def test_page_faults_stand_in_for_the_counters(start_target: StartTarget) -> None:
    report, truth = traced(start_target, "faults")
    found = totals_by_function(report, list(truth), "fault")
    expected = sum(each["bytes"] for each in truth.values())
    assert sum(each["bytes"] for each in found.values()) == pytest.approx(expected, rel=0.01)
    assert report["unexplained"] == 0 and report["changes"] == []
    assert any("are estimates" in note and "became resident" in note for note in report["notes"])


def test_without_a_source_the_growth_is_unexplained(start_target: StartTarget) -> None:
    report, truth = traced(start_target, "none")
    assert report["unexplained"] >= sum(each["bytes"] for each in truth.values())
    assert not [stack for stack in report["stacks"] if stack["kind"] == "fault"]
    assert any("RSS changes were not traced" in note for note in report["notes"])


def test_the_counters_are_the_default(start_target: StartTarget) -> None:
    target = start_target("fault_runs", 600, 1, 1)
    tracing = Memtrace(target.pid)
    target.go()
    report = tracing.stop().required_report()
    changes = sum(row["grew"] + row["shrank"] for row in report["changes"] if row["member"] != "swap")
    assert report["rss_source"] == "rss-stat" and report["changes_complete"] and changes == report["rss"]["growth"]
