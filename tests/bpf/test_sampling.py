"""Sampled runs: estimates within their errors, frees paired, nested calls drawn once, the books closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bpf.harness import Json, Memtrace, Target, totals_by_function
from tests.targets.build import PLAIN_LEAKS, command

SAMPLE_BYTES = "2048"
ROUNDS = 12
# A wrong draw of nested calls doubles an estimate; chance alone goes beyond six standard errors once in 10^9.
SIGMAS = 6.0

CASES = [
    *((name + variant, None) for variant in ("", "_musl") for name in PLAIN_LEAKS),
    *(
        (name, library)
        for library in ("libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2")
        for name in (*PLAIN_LEAKS, "leak_new")
    ),
]


def traced(directory: Path, name: str, library: str | None) -> tuple[Json, dict[str, dict[str, int]]]:
    """The report and the truth of a program that went through its phase ROUNDS times."""
    arguments = (500, 150, 0) if name == "leak_new" else ()
    with Target(command(name, directory, *arguments), {"LD_PRELOAD": library} if library else None) as target:
        if library and library not in Path(f"/proc/{target.pid}/maps").read_text():
            pytest.skip(f"{library} is not installed")
        with Memtrace(target.pid, "--sample-bytes", SAMPLE_BYTES) as memtrace:
            for _ in range(ROUNDS):
                answer = target.go()
            report = memtrace.stop().required_report()
    return report, dict(answer["stacks"])


@pytest.mark.parametrize(("name", "library"), CASES)
def test_estimates_are_within_their_error(targets_dir: Path, name: str, library: str | None) -> None:
    if name == "leak_strdup_musl":
        pytest.skip("musl has no unwind information: its strdup's stacks do not reach the caller")
    report, truth = traced(targets_dir, name, library)
    found = totals_by_function(report, list(truth), kind="malloc")
    errors = dict.fromkeys(truth, 0)
    for stack in report["stacks"]:
        names = [frame["function"] or "" for frame in stack["frames"]]
        owner = next((function for function in truth if any(function in each for each in names)), None)
        if owner:
            errors[owner] += stack["bytes_error"]
    for function, tally in truth.items():
        off = abs(found[function]["bytes"] - tally["bytes"])
        assert off <= SIGMAS / 1.96 * errors[function] or tally["bytes"] < 16 * int(SAMPLE_BYTES), (function, found)
    assert report["sampling"] == {"interval": int(SAMPLE_BYTES), "exact": False}
    assert not any(report["losses"].values()), report["losses"]


def test_the_books_close_on_estimates(targets_dir: Path) -> None:
    report, truth = traced(targets_dir, "leak_malloc", None)
    assert sum(row["bytes"] for row in report["ledger"]) == report["rss"]["growth"]
    live = sum(row["bytes"] for row in report["ledger"] if row["cause"] == "live")
    assert live > 0.5 * sum(tally["bytes"] for tally in truth.values())
    known = {"live", "kept-by-allocator", "sampling", "reused", "memtrace", "freed", "metadata", "before-attach"}
    assert {row["cause"] for row in report["ledger"]} <= known


def test_what_is_larger_than_the_interval_is_exact(targets_dir: Path) -> None:
    with (
        Target(command("leak_malloc", targets_dir, 200, 4096)) as target,
        Memtrace(target.pid, "--sample-bytes", "4096") as memtrace,
    ):
        truth = target.go()["stacks"]["leak_by_malloc"]
        report = memtrace.stop().required_report()
    (stack,) = (each for each in report["stacks"] if each["kind"] == "malloc" and each["bytes"] >= 4096)
    assert stack["bytes_error"] == 0
    for field in ("bytes", "count", "allocated_bytes", "allocated_count", "freed_bytes", "freed_count"):
        assert stack[field] == truth[field]
