"""Each kind of growth, and each thing that a process may do meanwhile, is told for what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf import cases
from tests.bpf.harness import Json
from tests.bpf.runs import FIELDS, NOTHING, Case, Run, functions_of, stacks_of, tallies, totals_of, traced_run

Traced = Callable[[Case], Run]

# Of a function with several call sites only these are known: a stack whose blocks are all freed is not in the report.
LIVE = ("bytes", "count")


@pytest.fixture
def traced(request: pytest.FixtureRequest, targets_dir: Path) -> Traced:
    return lambda case: traced_run(request, targets_dir, case)


def of_tally(tally: dict[str, int]) -> dict[str, int]:
    return {field: tally[field] for field in FIELDS}


def ledger_sum(run: Run, *causes: str, vma_class: str | None = None) -> int:
    rows = run.report["ledger"]
    return sum(row["bytes"] for row in rows if row["cause"] in causes and vma_class in (None, row["class"]))


def class_growth(run: Run, name: str) -> int:
    return sum(row["growth"] for row in run.report["classes"] if row["class"] == name)


def assert_exact(run: Run, *functions: str) -> None:
    """The malloc stacks of these functions equal the truth, all malloc stacks sum to it, and nothing was lost."""
    found = {function: totals_of(stacks_of(run, function)) for function in functions}
    assert found == {function: of_tally(run.truth[function]) for function in functions}
    assert totals_of([stack for stack in run.stacks if stack["kind"] == "malloc"]) == {
        field: sum(run.truth[function][field] for function in functions) for field in FIELDS
    }
    assert_no_losses(run)


def assert_no_losses(run: Run) -> None:
    losses = run.report["losses"]
    assert losses and not any(losses.values()), losses


# Leak, cache, or neither: the verdict, and how each stack goes on.


def test_steady_churn_is_not_growing(traced: Traced) -> None:
    run = traced(cases.CHURN)
    assert run.report["verdict"]["kind"] == "not-growing"
    assert_exact(run, "churn_one")
    assert [stack["trend"] for stack in stacks_of(run, "churn_one")] == ["steady"]
    assert not [functions_of(stack) for stack in run.stacks if stack["trend"] == "growing"]


def test_cache_that_filled_up_is_a_plateau(traced: Traced) -> None:
    run = traced(cases.CACHE)
    assert run.report["verdict"]["kind"] == "plateau"
    assert_exact(run, "cache_store")
    assert not [functions_of(stack) for stack in run.stacks if stack["trend"] == "growing"]


def test_leak_is_a_leak_and_its_function_comes_first(traced: Traced) -> None:
    run = traced(cases.LEAK)
    assert run.report["verdict"]["kind"] == "leak"
    first = run.stacks[0]
    assert "leak_by_malloc" in functions_of(first)
    assert first["trend"] == "growing"
    assert totals_of([first]) == of_tally(run.truth["leak_by_malloc"])


def test_short_window_makes_no_claim(traced: Traced) -> None:
    """3 MiB in a few milliseconds: neither leak nor plateau can be told from that."""
    run = traced(cases.ARENAS)
    assert run.report["verdict"]["kind"] == "unknown"
    assert {stack["trend"] for stack in run.stacks} == {"unknown"}


# Where the allocator gets its memory.


def test_threads_leak_in_arenas(traced: Traced) -> None:
    """Eight threads, one function: one stack, whose blocks all lie in arenas and are all resident."""
    run = traced(cases.ARENAS)
    assert_exact(run, "leak_in_thread")
    tally = run.truth["leak_in_thread"]
    assert [stack["class"] for stack in stacks_of(run, "leak_in_thread")] == ["malloc arena"]
    assert ledger_sum(run, "live", vma_class="malloc arena") == ledger_sum(run, "live") == tally["bytes"]
    assert class_growth(run, "malloc arena") >= tally["bytes"]


def test_big_blocks_are_resident_in_part(traced: Traced) -> None:
    """The stack holds what was asked for; RSS grew by the pages that were touched, allocator's headers included."""
    run = traced(cases.BIG)
    assert_exact(run, "leak_big_block")
    resident = run.truth["leak_big_block"]["resident_bytes"]
    assert [stack["class"] for stack in stacks_of(run, "leak_big_block")] == ["malloc mmapped"]
    assert class_growth(run, "malloc mmapped") == resident
    causes = ("live", "kept-by-allocator", "reused", "freed", "metadata", "before-attach")
    allocators = ledger_sum(run, *causes, vma_class="malloc mmapped")
    assert allocators == resident
    assert 0 < ledger_sum(run, "live") <= resident


def test_big_blocks_that_move_to_the_heap_are_counted_the_same(traced: Traced) -> None:
    """With glibc's default threshold, blocks are mapped at first and come from the heap later."""
    assert_exact(traced(cases.BIG_DYNAMIC), "leak_big_block")


# No allocator between.


def mapping_functions(run: Run) -> list[str]:
    return [function for function, tally in run.truth.items() if tally["bytes"]]


@pytest.mark.parametrize(("case", "kind"), [(cases.DIRECT_MMAP, "mmap"), (cases.DIRECT_BRK, "brk")], ids=str)
def test_direct_mappings_hold_their_resident_bytes(traced: Traced, case: Case, kind: str) -> None:
    run = traced(case)
    found = {function: totals_of(stacks_of(run, function, kind))["bytes"] for function in run.truth}
    assert found == {function: tally["resident_bytes"] for function, tally in run.truth.items()}


@pytest.mark.parametrize(("case", "kind"), [(cases.DIRECT_MMAP, "mmap"), (cases.DIRECT_BRK, "brk")], ids=str)
def test_direct_mappings_hold_their_address_space(traced: Traced, case: Case, kind: str) -> None:
    run = traced(case)
    totals = {function: totals_of(stacks_of(run, function, kind)) for function in run.truth}
    found = {function: sums["allocated_bytes"] - sums["freed_bytes"] for function, sums in totals.items()}
    assert found == {function: tally["bytes"] for function, tally in run.truth.items()}


@pytest.mark.parametrize("case", [cases.DIRECT_MMAP, cases.DIRECT_BRK], ids=str)
def test_direct_mappings_explain_all_growth(traced: Traced, case: Case) -> None:
    """Row by row: each function's resident bytes, and no other row but memtrace's own page."""
    run = traced(case)
    owners = {stack["id"]: function for function in run.truth for stack in _stacks_of_any_kind(run, function)}
    by_function: dict[str | None, int] = {}
    for row in run.report["ledger"]:
        if row["cause"] != "memtrace":
            assert row["cause"] == "mapped"
            owner = owners.get(row["stack"])
            by_function[owner] = by_function.get(owner, 0) + row["bytes"]
    truth = {function: tally["resident_bytes"] for function, tally in run.truth.items()}
    assert by_function == {function: resident for function, resident in truth.items() if resident}
    assert run.report["unexplained"] == 0
    assert_no_losses(run)


def _stacks_of_any_kind(run: Run, function: str) -> list[Json]:
    return [stack for kind in ("mmap", "brk", "fault") for stack in stacks_of(run, function, kind)]


# Other processes, other programs, other libraries.


def test_what_a_child_does_is_not_counted(traced: Traced) -> None:
    """It frees the parent's blocks and allocates, in memory of its own at the same addresses."""
    run = traced(cases.FORKER)
    assert_exact(run, "leak_in_parent")
    assert not [stack for stack in run.stacks if "allocate_in_child" in functions_of(stack)]
    assert run.noted_number("child process") == cases.FORKER.phases


def test_exec_begins_the_report_anew(traced: Traced) -> None:
    run = traced(cases.EXECER)
    assert totals_of(stacks_of(run, "leak_after_exec")) == of_tally(run.truth["leak_after_exec"])
    assert run.truth["leak_after_exec"]["count"] > 0
    assert totals_of(stacks_of(run, "leak_before_exec")) == NOTHING
    assert "again" in run.report["command"].split()
    note = run.note("ran another program (exec)")
    assert note is not None and "the report covers the time since" in note
    assert_no_losses(run)


def later(run: Run, function: str) -> tuple[dict[str, int], dict[str, int]]:
    """The truth of the phases after the first, in which the library came, and of all phases."""
    first, last = (tallies(run.answers[index])[function] for index in (0, -1))
    return {field: last[field] - first[field] for field in FIELDS}, of_tally(last)


def assert_live_between(low: dict[str, int], found: dict[str, int], high: dict[str, int]) -> None:
    assert all(low[field] <= found[field] <= high[field] for field in LIVE), (low, found, high)


def test_code_that_is_loaded_later_is_named(traced: Traced) -> None:
    """Every block counts, and for its caller, as libc was probed from the start; later stacks lead through to main."""
    run = traced(cases.PLUGIN)
    since_known, all_phases = later(run, "leak_in_plugin")
    stacks = stacks_of(run, "leak_in_plugin")
    assert totals_of(stacks) == all_phases
    whole = totals_of([stack for stack in stacks if stack["complete"] and "main" in functions_of(stack)])
    assert_live_between(since_known, whole, all_phases)
    assert {frame["module"].rpartition("/")[2] for stack in stacks for frame in stack["frames"][1:2]} == {
        "libplugin.so"
    }
    assert_no_losses(run)


def test_allocator_that_is_loaded_later_is_probed(traced: Traced) -> None:
    """Exact from when its probes were there; of the phase that loaded it, an unknown part came before."""
    run = traced(cases.LATE_ALLOCATOR)
    since_probed, all_phases = later(run, "leak_by_loaded_allocator")
    found = totals_of(stacks_of(run, "leak_by_loaded_allocator"))
    assert_live_between(since_probed, found, all_phases)
    assert any(line.startswith("jemalloc in ") for line in run.report["probed"])
    note = run.note("was loaded while tracing")
    assert note is not None and note.startswith("jemalloc in ")
    assert_no_losses(run)


# How malloc is called, and what it was called for before.


def test_executable_with_a_stub_called_malloc(traced: Traced) -> None:
    """The executable's own symbol `malloc` is a jump to libc's: not an allocator, and not to be probed."""
    run = traced(cases.MALLOC_ADDRESS)
    assert_exact(run, "leak_by_malloc_address")
    assert not any("malloc_address" in line for line in run.report["probed"])


def test_malloc_called_through_a_table(traced: Traced) -> None:
    run = traced(cases.FUNCTION_TABLE)
    found = totals_of([stack for stack in run.stacks if stack["kind"] == "malloc"])
    assert totals_of(stacks_of(run, "leak_by_table")) == found
    assert {field: found[field] for field in LIVE} == {field: run.truth["leak_by_table"][field] for field in LIVE}
    assert_no_losses(run)


def test_older_blocks_are_neither_growth_nor_debt(traced: Traced) -> None:
    """Blocks from before the attach are freed and resized: nothing goes below zero, and the report says how many."""
    run = traced(cases.FREE_OLD)
    assert_exact(run, "resize_old_block")
    assert run.noted_number("from before the window") == run.answers[-1]["before_ready"]["freed_count"]
    assert all(stack[field] >= 0 for stack in run.stacks for field in FIELDS)
    assert not [stack for stack in run.stacks if "allocate_before_ready" in functions_of(stack)]
