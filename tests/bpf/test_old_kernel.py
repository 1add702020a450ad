"""What older kernels lack is done without: perf-event uprobes for session links, raw tracepoints for single calls."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bpf.harness import Memtrace, Target, totals_by_function
from tests.targets.build import command


@pytest.fixture(autouse=True)
def old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).with_name("old_kernel.py")
    monkeypatch.setenv("MEMTRACE_COMMAND", f"{sys.executable} {script}")


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("leak_malloc", None),
        ("leak_realloc", None),
        ("leak_calloc", "libmimalloc.so.2"),
        ("leak_new", "libjemalloc.so.2"),
    ],
)
def test_everything_is_counted(targets_dir: Path, name: str, library: str | None) -> None:
    environment = {"LD_PRELOAD": library} if library else None
    with Target(command(name, targets_dir), environment) as target, Memtrace(target.pid) as memtrace:
        truth = target.go()["stacks"]
        report = memtrace.stop().required_report()
    found = totals_by_function(report, list(truth), kind="malloc")
    assert {each: found[each]["bytes"] for each in truth} == {each: tally["bytes"] for each, tally in truth.items()}
    assert not any(report["losses"].values())
    assert sum(row["bytes"] for row in report["ledger"]) == report["rss"]["growth"]


def test_mappings_are_followed(targets_dir: Path) -> None:
    with Target(command("direct_mmap", targets_dir)) as target, Memtrace(target.pid) as memtrace:
        target.go()
        report = memtrace.stop().required_report()
    assert any(row["cause"] == "mapped" and row["stack"] for row in report["ledger"])
    assert report["unexplained"] == 0 and not any("model of the address space" in note for note in report["notes"])


def test_samples_and_their_frees_pair(targets_dir: Path) -> None:
    with (
        Target(command("leak_calloc", targets_dir)) as target,
        Memtrace(target.pid, "--sample-bytes", "512") as memtrace,
    ):
        for _ in range(4):
            truth = target.go()["stacks"]["leak_by_calloc"]
        report = memtrace.stop().required_report()
    (stack,) = (each for each in report["stacks"] if each["kind"] == "malloc" and each["bytes"] > 0)
    assert abs(stack["bytes"] - truth["bytes"]) <= 3 * stack["bytes_error"]
    assert abs(stack["allocated_bytes"] - truth["allocated_bytes"]) <= 0.3 * truth["allocated_bytes"]
