"""Attaching and detaching harms no program: the matrix of safety.py, and kills at the worst moment."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.harness import HarnessError, Memtrace, wait_for
from tests.bpf.kernel import bpf_objects, held_objects
from tests.bpf.safety import HEADINGS, SUBJECTS, WAYS, End, Moment, Row, cells, trial
from tests.bpf.watching import code_of
from tests.targets.build import MissingCompiler

pytestmark = [pytest.mark.bpf, pytest.mark.slow]

KILLS = 5


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """The rows so far; printed as a table after the last one."""
    rows: list[Row] = []
    yield rows
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        for line in (HEADINGS, *map(cells, rows)):
            words = (word.ljust(38 if i == 0 else 14) for i, word in enumerate(line))
            print("".join(("\n" if line is HEADINGS else "", *words)).rstrip())


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_target_runs_on_without_a_probe_after_each_of_ten_ends(
    name: str, targets_dir: Path, table: list[Row]
) -> None:
    row = _trial(name, targets_dir, WAYS)
    table.append(row)

    assert row.details == ()
    assert row.is_safe, row


@pytest.mark.parametrize("moment", [Moment.ATTACHING, Moment.DETACHING])
def test_killed_in_the_middle_of_it_no_breakpoint_is_left(moment: Moment, targets_dir: Path) -> None:
    # A fatal signal makes the kernel's uprobe_unregister fail: "failed to unregister, leaking uprobe".
    row = _trial("1 hot thread", targets_dir, ((End.SIGKILL, moment),) * KILLS)

    assert row.details == ()
    assert row.is_safe, row


@pytest.mark.parametrize("end", [End.SIGTERM, End.SIGKILL, End.CLOSED_TERMINAL])
def test_ended_before_anything_is_attached(end: End, targets_dir: Path) -> None:
    # Also shows that `attached` in the table is measured: this run has none.
    row = _trial("1 hot thread", targets_dir, ((end, Moment.STARTING),))

    assert row.details == ()
    assert (row.attached, row.exit_code) == (0, 0)


def test_the_matrix_sees_a_probe_that_is_left(targets_dir: Path) -> None:
    with SUBJECTS["1 hot thread"](targets_dir) as subject:
        code = code_of(subject.pid)
        with Memtrace(subject.pid) as memtrace:
            wait_for(lambda: code_of(subject.pid) != code, "a breakpoint is seen")
            links = {item for item in held_objects(memtrace.pid) if item.kind == "link"}
            assert links <= bpf_objects()
            memtrace.stop()
        wait_for(lambda: code_of(subject.pid) == code and not links & bpf_objects(), "all is seen to go")


def _trial(name: str, directory: Path, ways: tuple[tuple[End, Moment], ...]) -> Row:
    if name.startswith("redis") and shutil.which("redis-benchmark") is None:
        pytest.skip("redis-server and redis-tools are not installed")
    try:
        return trial(name, directory, ways)
    except MissingCompiler as error:
        pytest.skip(str(error))
    except HarnessError as error:
        pytest.fail(str(error))
