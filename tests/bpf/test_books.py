"""The books close: a report's parts add up to its whole, and the whole is what the kernel says, to the byte."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.bpf import cases
from tests.bpf.harness import Json
from tests.bpf.runs import Case, Run, traced_run

Traced = Callable[[Case], Run]

every_case = pytest.mark.parametrize("case", cases.ALL, ids=str)
# What these grow by was mapped or moved by brk without an allocator, so that every byte has a stack.
direct_cases = pytest.mark.parametrize("case", [cases.DIRECT_MMAP, cases.DIRECT_BRK], ids=str)
# Every byte of every block that these leak in C has been written, so it is resident.
WRITTEN = [*(case for case in cases.LEAKS if case.target != "leak_new"), cases.LEAK, cases.ARENAS]


@pytest.fixture
def traced(request: pytest.FixtureRequest, targets_dir: Path) -> Traced:
    return lambda case: traced_run(request, targets_dir, case)


def sums(rows: Iterable[Json], key: str, value: str) -> dict[str, int]:
    totals: dict[str, int] = defaultdict(int)
    for row in rows:
        totals[row[key]] += row[value]
    return {name: total for name, total in totals.items() if total}


@every_case
def test_ledger_sums_to_the_growth(traced: Traced, case: Case) -> None:
    report = traced(case).report
    rss = report["rss"]
    assert rss["growth"] == rss["end"] - rss["start"] == rss["anon"] + rss["file"] + rss["shmem"]
    assert sum(row["bytes"] for row in report["ledger"]) == rss["growth"]
    unexplained = [row["bytes"] for row in report["ledger"] if row["cause"] == "unexplained"]
    assert report["unexplained"] == sum(unexplained)


@every_case
def test_classes_and_vmas_sum_to_the_ledger(traced: Traced, case: Case) -> None:
    """Class by class. Rows of the class "all" are what changed between reading the VMAs and the counters."""
    report = traced(case).report
    ledger = sums(report["ledger"], "class", "bytes")
    ledger.pop("all", None)
    assert sums(report["classes"], "class", "growth") == ledger
    assert sums(report["vmas"], "class", "growth") == ledger
    assert sums(report["vmas"], "class", "rss") == sums(report["classes"], "class", "rss_end")
    assert all(row["growth"] == row["rss_end"] - row["rss_start"] for row in report["classes"])


@every_case
def test_rss_at_both_ends_is_the_kernels(traced: Traced, case: Case) -> None:
    """As it stood in /proc/PID/status while the target was quiet: equal on any kernel, as nothing changed between.

    An exec lies after the first reading: there, only the end can be compared.
    """
    run = traced(case)
    rss = run.report["rss"]
    assert rss["end"] == run.after.rss
    if case != cases.EXECER:
        assert rss["start"] == run.before.rss
        grown = {name: getattr(run.after, name) - getattr(run.before, name) for name in ("anon", "file", "shmem")}
        assert {name: rss[name] for name in grown} == grown


@every_case
def test_vmas_are_the_kernels(traced: Traced, case: Case) -> None:
    run = traced(case)
    assert sum(row["rss"] for row in run.report["vmas"]) == run.after.mapped
    assert sum(row["rss_end"] for row in run.report["classes"]) == run.after.mapped


@direct_cases
def test_nothing_is_unexplained_where_a_quiet_target_maps_directly(traced: Traced, case: Case) -> None:
    """Save what the kernel itself holds back from its counters, which is nothing from 6.16 on."""
    run = traced(case)
    assert run.report["unexplained"] == run.before.held_back - run.after.held_back


@every_case
def test_stacks_of_the_ledger_are_in_the_report(traced: Traced, case: Case) -> None:
    report = traced(case).report
    kinds: dict[str, set[str]] = defaultdict(set)
    for stack in report["stacks"]:
        kinds[stack["id"]].add(stack["kind"])
    matching = {"live": {"malloc"}, "mapped": {"mmap", "brk"}, "faulted": {"fault"}}
    for row in report["ledger"]:
        if row["stack"] is not None:
            assert kinds[row["stack"]] & matching[row["cause"]], row


@pytest.mark.parametrize("case", WRITTEN, ids=str)
def test_written_blocks_are_booked_as_live_in_full(traced: Traced, case: Case) -> None:
    run = traced(case)
    live = sum(row["bytes"] for row in run.report["ledger"] if row["cause"] == "live")
    assert live == sum(tally["bytes"] for tally in run.truth.values())


@every_case
def test_figures_of_each_stack_agree(traced: Traced, case: Case) -> None:
    report = traced(case).report
    seconds = report["window"]["seconds"]
    assert [stack["bytes"] for stack in report["stacks"]] == sorted(
        (stack["bytes"] for stack in report["stacks"]), reverse=True
    )
    for stack in report["stacks"]:
        assert stack["rate"] == pytest.approx(stack["bytes"] / seconds)
        assert 0 <= stack["oldest"] <= seconds
        assert stack["bytes_error"] == 0
        if stack["kind"] == "malloc":
            assert stack["bytes"] == stack["allocated_bytes"] - stack["freed_bytes"]
            assert stack["count"] == stack["allocated_count"] - stack["freed_count"]
            assert stack["frames"]


# The contract: DESIGN.md section 7. A type, alternatives, a list of one shape, an object, or a predicate.

NUMBER = (int, float)
TEXT = (str, type(None))
KINDS = {"leak", "plateau", "retention", "file-cache", "stacks", "not-growing", "unknown"}


def one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: value in values


def matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def is_moment(value: Any) -> bool:
    return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None


def maybe(shape: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or shape(value)


address = matches("[0-9a-f]{1,16}")
stack_id = matches("[0-9a-f]{16}")

# What is not known of a frame is null; so is target_share where it is not measured.
FRAME = {
    "function": TEXT,
    "module": TEXT,
    "offset": int,
    "build_id": TEXT,
    "file": TEXT,
    "line": (int, type(None)),
    "inlined": bool,
    "language": one_of("native", "python"),
}
STACK = {
    "id": stack_id,
    "kind": one_of("malloc", "mmap", "fault", "brk"),
    "bytes": int,
    "count": int,
    "bytes_error": int,
    "allocated_bytes": int,
    "freed_bytes": int,
    "rate": NUMBER,
    "oldest": NUMBER,
    "class": str,
    "complete": bool,
    "frames": [FRAME],
}
REPORT = {
    "schema": one_of("memtrace/1"),
    "pid": int,
    "command": str,
    "verdict": {"kind": one_of(*KINDS), "text": str},
    "window": {"start": is_moment, "seconds": NUMBER},
    "rss": dict.fromkeys(("start", "end", "growth", "anon", "file", "shmem", "swap"), int),
    "classes": [{"class": str, "rss_start": int, "rss_end": int, "growth": int, "size_growth": int}],
    "vmas": [
        {
            "start": address,
            "end": address,
            "perms": matches("[r-][w-][x-][ps]"),
            "path": str,
            "class": str,
            "rss": int,
            "growth": int,
        }
    ],
    "stacks": [STACK],
    "ledger": [{"class": str, "cause": str, "stack": maybe(stack_id), "bytes": int}],
    "unexplained": int,
    "sampling": {"interval": int, "exact": bool},
    "overhead": {"target_share": (*NUMBER, type(None)), "self_cpu": NUMBER, "self_rss": int},
    "losses": dict,
    "notes": [str],
}


def breaches(value: Any, shape: Any, path: str = "report") -> list[str]:
    """Where a value does not have a shape; more names than the contract's are allowed."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{path} is no object"]
        missing = [f"{path}.{name} is missing" for name in shape if name not in value]
        found = [(name, inner) for name, inner in shape.items() if name in value]
        return missing + [line for name, inner in found for line in breaches(value[name], inner, f"{path}.{name}")]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [line for i, item in enumerate(value) for line in breaches(item, shape[0], f"{path}[{i}]")]
    if isinstance(shape, (type, tuple)):
        types = shape if isinstance(shape, tuple) else (shape,)
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
    else:
        fits = shape(value)
    return [] if fits else [f"{path} is {value!r}"]


@every_case
def test_json_keeps_the_contract(traced: Traced, case: Case) -> None:
    report = traced(case).report
    assert breaches(report, REPORT) == []
    assert breaches(list(report["losses"].values()), [int]) == []
    assert report["sampling"] == {"interval": 1, "exact": True}


def test_contract_check_finds_breaches(traced: Traced) -> None:
    """The check itself: a wrong type, a missing name and a bool for a number are found."""
    report = traced(cases.ARENAS).report
    broken = {**report, "pid": "1", "unexplained": False, "stacks": [{**report["stacks"][0], "id": "x"}]}
    del broken["notes"]
    assert sorted(breaches(broken, REPORT)) == [
        "report.notes is missing",
        "report.pid is '1'",
        "report.stacks[0].id is 'x'",
        "report.unexplained is False",
    ]
