"""An exception that leaves operator new passes our probes, whoever else runs into them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bpf.harness import Json, Memtrace, Target, totals_by_function
from tests.targets.build import command

pytestmark = pytest.mark.bpf

# Those whose own operator new is probed. glibc's is that of the C++ library, which is left alone.
all_allocators = pytest.mark.parametrize("library", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4"])


def throwing(targets_dir: Path, library: str, *, in_children: int) -> Target:
    """A program that throws std::bad_alloc in each phase, and catches it."""
    target = Target(command("leak_new", targets_dir, 500, 150, 1, in_children), {"LD_PRELOAD": library})
    if library not in Path(f"/proc/{target.pid}/maps").read_text():
        target.close()
        pytest.skip(f"{library} is not installed")
    return target


def assert_counted(report: Json, truth: Json) -> None:
    found = totals_by_function(report, list(truth["stacks"]), kind="malloc")
    for function, tally in truth["stacks"].items():
        assert (found[function]["bytes"], found[function]["count"]) == (tally["bytes"], tally["count"]), function


@all_allocators
def test_two_processes_that_are_traced_at_once(targets_dir: Path, library: str) -> None:
    """They share the library's file, and with it the places of the probes: each one's are hit in the other, too."""
    with (
        throwing(targets_dir, library, in_children=0) as first,
        throwing(targets_dir, library, in_children=0) as second,
        Memtrace(first.pid) as of_first,
        Memtrace(second.pid) as of_second,
    ):
        truths = first.go(), second.go()
        reports = of_first.stop().required_report(), of_second.stop().required_report()
        assert first.quit() == second.quit() == 0
    for report, truth in zip(reports, truths, strict=True):
        assert_counted(report, truth)


@all_allocators
def test_children_of_the_target(targets_dir: Path, library: str) -> None:
    """A child has its parent's breakpoints, and no memtrace of its own."""
    with throwing(targets_dir, library, in_children=1) as target, Memtrace(target.pid) as memtrace:
        truth = target.go()
        report = memtrace.stop().required_report()
        assert target.quit() == 0
    assert_counted(report, truth)
