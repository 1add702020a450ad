"""The budget on real processes: what it lets go, that it says so, and that nothing freed meanwhile is called a leak."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bpf.harness import Json, Target, plain_name
from tests.bpf.runs import Watched
from tests.targets.build import command

TICKS = 6
DEFAULTS = ("--sample-bytes", "16384", "--max-overhead", "5")


def traced(argv: list[str], *options: str) -> Json:
    """The report on a program that runs by itself, after TICKS looks a second apart."""
    with Target(argv) as target, Watched(target.pid, *DEFAULTS, *options) as memtrace:
        memtrace.wait_for_ticks(TICKS)
        return memtrace.stop().required_report()


@pytest.fixture(scope="module")
def hot_leak(targets_dir: Path) -> Json:
    """A loop of some 50 million pairs a second, in which one call in 50,000 leaks."""
    return traced(command("hot_leak", targets_dir, 1, 50_000, 1000))


def test_a_leak_in_a_hot_loop_is_named_first(hot_leak: Json) -> None:
    first = hot_leak["stacks"][0]
    assert "planted_leak" in [plain_name(frame["function"]) for frame in first["frames"] if frame["function"]]
    assert first["bytes"] + first["unverified_bytes"] > 0.5 * hot_leak["rss"]["growth"] > 1 << 20


def test_each_step_is_told_with_its_time(hot_leak: Json) -> None:
    overhead = hot_leak["overhead"]
    assert overhead["limit"] == 0.05 and overhead["steps"]
    step = overhead["steps"][0]
    assert "probes off" in step["action"] and 0 < step["seconds"] < 3 and step["target_share"] > 0.05
    assert any("budget (5.0 % of its CPU time)" in note for note in hot_leak["notes"])
    assert 0 < overhead["probed_share"] < 0.5
    assert not hot_leak["sampling"]["exact"]


def test_gaps_are_no_losses(hot_leak: Json) -> None:
    assert not any(hot_leak["losses"].values()), hot_leak["losses"]


def test_the_books_close_with_gaps(hot_leak: Json) -> None:
    assert sum(row["bytes"] for row in hot_leak["ledger"]) == hot_leak["rss"]["growth"]
    assert not any(row["cause"] == "kept-by-allocator" for row in hot_leak["ledger"])


def test_what_is_freed_while_the_probes_are_off_is_no_leak(targets_dir: Path) -> None:
    """The loop alone, of which every window sees some thousand blocks: none but the 256 that a thread has are held.

    Where a thread was off its CPU as a window closed, the blocks that it then had are left, at addresses where malloc
    has blocks in use: no more than the loop has at any moment, and no leak.
    """
    report = traced(command("hot_leak", targets_dir, 2, 0))
    assert report["overhead"]["steps"]
    held = [stack for stack in report["stacks"] if stack["kind"] == "malloc"]
    assert sum(stack["bytes"] for stack in held) <= 2 * 256 * (64 + 511)
    assert sum(stack["count"] for stack in held) <= 2 * 256
    assert report["overhead"]["probe_hits"] > 100 * 2 * 256
    assert sum(stack["unverified_bytes"] for stack in held) <= max(report["rss"]["growth"], 0)
    assert report["verdict"]["kind"] != "leak"


def test_a_quiet_process_keeps_its_probes(targets_dir: Path) -> None:
    with (
        Target(command("leak_malloc", targets_dir)) as target,
        Watched(target.pid, "--sample-bytes", "1", "--max-overhead", "5", "-i", "0.2") as memtrace,
    ):
        truth = target.go()["stacks"]["leak_by_malloc"]
        memtrace.wait_for_ticks(2)
        report = memtrace.stop().required_report()
    assert report["sampling"] == {"interval": 1, "exact": True}
    assert report["overhead"]["steps"] == [] and report["overhead"]["probed_share"] > 0.99
    assert sum(stack["bytes"] for stack in report["stacks"] if stack["kind"] == "malloc") == truth["bytes"]


def test_without_a_budget_the_probes_stay(targets_dir: Path) -> None:
    report = traced(command("hot", targets_dir, 1), "--max-overhead", "none", "-i", "0.2")
    assert report["overhead"]["limit"] is None and report["overhead"]["steps"] == []
    assert report["overhead"]["target_share"] > 0.5
