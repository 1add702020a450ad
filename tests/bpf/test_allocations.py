"""Allocations are counted exactly: per function, to the byte and the block, whatever the allocator and the linkage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.cases import LEAKS, STRIPPED, WITHOUT_UNWIND_TABLES
from tests.bpf.runs import FIELDS, NOTHING, Case, Run, functions_of, stacks_of, totals_of, traced_run

# How memtrace names the allocator that a case's library holds.
PRELOADED = {"libjemalloc.so.2": "jemalloc", "libtcmalloc_minimal.so.4": "tcmalloc", "libmimalloc.so.2": "mimalloc"}

all_leaks = pytest.mark.parametrize("case", LEAKS, ids=str)
all_unwound = pytest.mark.parametrize("case", [case for case in LEAKS if case not in WITHOUT_UNWIND_TABLES], ids=str)
all_stripped = pytest.mark.parametrize("case", STRIPPED, ids=str)


@pytest.fixture
def traced(request: pytest.FixtureRequest, targets_dir: Path) -> Callable[[Case], Run]:
    return lambda case: traced_run(request, targets_dir, case)


def live(tally: dict[str, int]) -> dict[str, int]:
    """What the report is to say of a function: a stack whose blocks are all freed again is not in it."""
    return {field: tally[field] for field in FIELDS} if tally["count"] else NOTHING


@all_unwound
def test_totals_of_each_function_equal_the_truth(traced: Callable[[Case], Run], case: Case) -> None:
    run = traced(case)
    found = {function: totals_of(stacks_of(run, function)) for function in run.truth}
    assert found == {function: live(tally) for function, tally in run.truth.items()}


@all_unwound
def test_every_stack_leads_to_main(traced: Callable[[Case], Run], case: Case) -> None:
    """Through libc's and libstdc++'s frames too; and such a stack is said to be complete."""
    stacks = [stack for stack in traced(case).stacks if stack["kind"] == "malloc"]
    assert stacks
    assert [functions_of(stack) for stack in stacks if "main" not in functions_of(stack)] == []
    assert [functions_of(stack) for stack in stacks if not stack["complete"]] == []


@pytest.mark.parametrize("case", WITHOUT_UNWIND_TABLES, ids=str)
def test_where_the_way_out_of_libc_is_not_known_the_stack_ends_there_and_says_so(
    traced: Callable[[Case], Run], case: Case
) -> None:
    """No frame is left out or made up: the stack ends in the function of libc, whose totals are the caller's."""
    run = traced(case)
    stacks = {functions_of(stack)[-1]: stack for stack in run.stacks if stack["kind"] == "malloc"}
    found = {f"leak_by_{function}": totals_of([stack]) for function, stack in stacks.items()}
    assert found == {function: live(tally) for function, tally in run.truth.items()}
    assert not any(stack["complete"] for stack in stacks.values())
    assert run.note("no unwind information") is not None


@all_leaks
def test_nothing_is_counted_that_the_target_did_not_ask_for(traced: Callable[[Case], Run], case: Case) -> None:
    """Not the calls that failed, not what an allocator does for itself: the stacks sum to the truth, without rest."""
    run = traced(case)
    truth = [live(tally) for tally in run.truth.values()]
    found = totals_of([stack for stack in run.stacks if stack["kind"] == "malloc"])
    assert found == {field: sum(tally[field] for tally in truth) for field in FIELDS}


@all_leaks
def test_nothing_is_lost(traced: Callable[[Case], Run], case: Case) -> None:
    losses = traced(case).report["losses"]
    assert losses and not any(losses.values()), losses


@all_leaks
def test_no_block_is_taken_for_an_older_one(traced: Callable[[Case], Run], case: Case) -> None:
    """None of these targets frees what it held before the attach."""
    assert traced(case).note("from before the window") is None


@all_leaks
def test_report_names_the_allocator(traced: Callable[[Case], Run], case: Case) -> None:
    run = traced(case)
    probed = " ".join(run.report["probed"])
    expected = PRELOADED[case.preload] if case.preload else "musl" if case.target.endswith("musl") else "malloc"
    assert expected in probed
    assert run.note("no malloc functions were found") is None


def test_failed_calls_leave_no_stack(traced: Callable[[Case], Run]) -> None:
    for target, function in (
        ("leak_malloc", "fail_by_malloc"),
        ("leak_calloc", "fail_by_calloc"),
        ("leak_aligned", "fail_by_posix_memalign"),
        ("leak_new", "fail_by_new"),
    ):
        assert stacks_of(traced(Case(target)), function) == []


def test_failed_realloc_keeps_the_old_block(traced: Callable[[Case], Run]) -> None:
    run = traced(Case("leak_realloc"))
    tally = run.truth["keep_after_failed_realloc"]
    assert tally["count"] > 0
    assert totals_of(stacks_of(run, "keep_after_failed_realloc")) == live(tally)


@all_stripped
def test_static_program_without_symbols_is_traced_otherwise_and_says_so(
    traced: Callable[[Case], Run], case: Case
) -> None:
    run = traced(case)
    note = run.note("no malloc functions were found")
    assert note is not None and "VMAs and page faults are traced instead" in note
    assert run.report["probed"] == []
    assert "no allocator found" in run.stderr.splitlines()[0]


@all_stripped
def test_without_malloc_functions_growth_still_has_stacks(traced: Callable[[Case], Run], case: Case) -> None:
    """All of it: nothing is known of an allocator here, so nothing may be booked to one."""
    run = traced(case)
    ledger = [row for row in run.report["ledger"] if row["cause"] != "memtrace"]
    assert sum(row["bytes"] for row in ledger) > 0
    assert {row["cause"] for row in ledger} <= {"mapped", "faulted"}
    assert all(row["stack"] for row in ledger)
    assert not any(run.report["losses"].values())
