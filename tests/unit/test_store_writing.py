"""How a recording is written: in order, in bounded space, and so that it can be read however the writing ended."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.recordings import CACHE, LEAK, leaking, look, snapshot, window, write_recording
from tests.unit.reports import KIB, MIB, sample_report
from tracer.errors import UsageError
from tracer.model.look import Held
from tracer.store.guard import Guard, roll_back
from tracer.store.observer import Observer
from tracer.store.recorder import FileRecorder
from tracer.store.recording import Recording
from tracer.store.schema import PAGE_SIZE
from tracer.store.writer import Writer, create_file

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0

Record = Callable[..., FileRecorder]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def record(tmp_path: Path, said: list[str]) -> Iterator[Record]:
    made: list[FileRecorder] = []

    def start(name: str = "a.memtrace", **options: object) -> FileRecorder:
        known = {"force": False, "pid": 4711, "options": {"interval": "1.0"}, "say": said.append}
        made.append(FileRecorder(tmp_path / name, **(known | options)))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for recorder in made:
        recorder.close()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.002)


# The file.


def test_it_is_there_before_tracing_and_for_its_owner_only(record: Record, tmp_path: Path) -> None:
    record()
    path = tmp_path / "a.memtrace"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Recording(path) as recording:
        assert (recording.origin.pid, recording.origin.started, recording.looks) == (4711, None, ())
        assert recording.origin.host == os.uname().nodename and recording.origin.options == {"interval": "1.0"}


def test_one_of_which_no_window_began_is_removed(record: Record, tmp_path: Path) -> None:
    record().close()
    assert os.listdir(tmp_path) == []


def test_it_is_not_overwritten_but_by_force(tmp_path: Path) -> None:
    path = tmp_path / "a.memtrace"
    path.write_text("kept")
    with pytest.raises(UsageError, match="exists"):
        create_file(path, force=False)
    assert path.read_text() == "kept"
    create_file(path, force=True)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("kind", ["directory", "fifo", "missing", "journal", "long"])
def test_what_cannot_be_a_recording_is_refused_in_a_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.memtrace"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "missing":
            path = tmp_path / "none" / "a.memtrace"
        case "journal":
            path.with_name("a.memtrace-journal").write_text("x")
        case "long":
            path = tmp_path / ("x" * 300)
    with pytest.raises(UsageError) as refusal:
        create_file(path, force=True)
    assert refusal.value.fix and "\n" not in refusal.value.cause


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    link = tmp_path / "a.memtrace"
    link.symlink_to(precious)
    with pytest.raises(UsageError):
        create_file(link, force=True)
    link.unlink()
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError):
        create_file(link, force=False)
    assert precious.read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_made_by_sudo_it_belongs_to_who_typed_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "2345")
    create_file(tmp_path / "a", force=False)
    status = (tmp_path / "a").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 2345, 0o600)


# What is in it.


def test_what_was_seen_is_in_it(record: Record, tmp_path: Path, said: list[str]) -> None:
    recorder = record()
    recorder.begin(window())
    for each in leaking(6):
        recorder.look(each)
        recorder._waiting.join()
    recorder.finish(sample_report())
    with Recording(tmp_path / "a.memtrace") as recording:
        assert [each.seconds for each in recording.looks] == [0, 1, 2, 3, 4, 5, 6]
        last = recording.looks[-1]
        assert last.rss == leaking(6)[-1].rss and last.counters == {"probe_hits": 600}
        held = {recording.stacks[number].stack: row for number, row in recording.stacks_at(last).items()}
        assert held[f"{LEAK:016x}"] == Held(6 * MIB, 596, 6 * MIB + 4 * KIB, 600, 4 * KIB, 4)
        names = {each.stack: [one.function for one in each.frames or ()] for each in recording.stacks.values()}
        assert names[f"{LEAK:016x}"][1] == "store_attributes"
        assert recording.origin.probed and recording.origin.ended == "Ctrl-C"
        assert recording.classes_at(last)["heap"].rss == 16 * MIB
        assert (0xFFFFFFFFFF601000, 0) in recording.vmas_at(last).values()
    assert said == [said[0]] and "memtrace report" in said[0]


def test_an_exec_begins_anew(tmp_path: Path, record: Record) -> None:
    recorder = record()
    recorder.begin(window())
    for each in leaking(3):
        recorder.look(each)
        recorder._waiting.join()
    recorder.begin(window(command="/srv/other"))
    recorder.look(look(1.0, {CACHE: (1, 100, 0, 0, 0, 0)}))
    recorder.finish(sample_report())
    with Recording(tmp_path / "a.memtrace") as recording:
        assert recording.origin.command == "/srv/other"
        assert [each.seconds for each in recording.looks] == [0, 1]
        assert [each.stack for each in recording.stacks.values()] == [f"{CACHE:016x}"]


def test_a_slow_disk_leaves_looks_out_and_the_last_in(record: Record, tmp_path: Path, said: list[str]) -> None:
    recorder = record()
    recorder.begin(window())
    recorder._waiting.join()
    blocker = sqlite3.connect(tmp_path / "a.memtrace", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for each in leaking(10):
        recorder.look(each)
    blocker.execute("ROLLBACK")
    blocker.close()
    recorder.finish(sample_report())
    with Recording(tmp_path / "a.memtrace") as recording:
        assert recording.looks[-1].seconds == 10 and len(recording.looks) < 11
        assert recording.origin.dropped == 11 - len(recording.looks)
        held = {recording.stacks[number].stack: row for number, row in recording.stacks_at(recording.looks[-1]).items()}
        assert held[f"{LEAK:016x}"].bytes == 10 * MIB, "what was left out is in the next"
    assert "left out" in said[-1]


def test_writing_that_fails_stops_the_recording_and_nothing_else(
    record: Record, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = record()
    recorder.begin(window())
    recorder.look(leaking(3)[0])
    recorder._waiting.join()

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Writer, "add", fail)
    recorder.look(leaking(3)[1])
    wait_for(lambda: recorder._worker.failure is not None)
    recorder.look(leaking(3)[2])
    recorder.finish(sample_report())
    assert len(said) == 2 and "stopped 1.0 s into the window" in said[0] and "disk is full" in said[0]
    assert "incomplete: it ends 1.0 s into the window" in said[1]
    with Recording(tmp_path / "a.memtrace") as recording:
        assert [each.seconds for each in recording.looks] == [0, 1] and recording.report() is None


# Its size.


@given(count=st.integers(1, 120), most=st.integers(4, 40))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_looks_are_thinned_out_evenly_and_what_is_left_is_true(tmp_path: Path, count: int, most: int) -> None:
    looks = leaking(count)
    path = write_recording(tmp_path / "a.memtrace", looks, max_looks=most)
    with Recording(path) as recording:
        times = [each.seconds for each in recording.looks]
        assert times[0] == 0 and times[-1] == count and len(times) <= most + 1
        # The latest is there whatever its distance.
        distances = {later - sooner for sooner, later in pairwise(times[:-1])}
        assert len(distances) <= 1
        for each in recording.looks[1:]:
            truth = looks[int(each.seconds) - 1]
            assert each.rss == truth.rss
            for number, held in recording.stacks_at(each).items():
                stack = int(recording.stacks[number].stack, 16)
                if recording.stacks[number].kind == "malloc":
                    allocations = truth.allocations[stack]
                    assert held.bytes == allocations[1] - allocations[3]
                    assert held.allocated_count == allocations[0]
            heap = recording.classes_at(each)["heap"]
            assert (heap.rss, heap.seconds) == (truth.snapshot.usages[0].rss, each.seconds)


def test_the_file_stays_below_its_limit(tmp_path: Path) -> None:
    limit = MIB

    def many(seconds: int) -> dict[int, tuple[int, ...]]:
        return {stack: (seconds, seconds * stack, 0, 0, 0, 0) for stack in range(1, 1001)}

    looks = [look(float(second), many(second)) for second in range(1, 101)]
    path = write_recording(tmp_path / "a.memtrace", looks, named=(), max_bytes=limit)
    # One look more than the limit may be in the file before the next one is dropped.
    assert path.stat().st_size < limit + 200 * KIB
    with Recording(path) as recording:
        assert recording.looks[-1].seconds == 100 and len(recording.looks) >= 8


def test_above_the_limit_rss_and_classes_go_on(record: Record, tmp_path: Path, said: list[str]) -> None:
    recorder = record(max_bytes=40 * PAGE_SIZE)
    recorder.begin(window())
    for second in range(1, 30):
        allocations = {stack: (second, second * stack, 0, 0, 0, 0) for stack in range(1, 300 * second)}
        recorder.look(look(float(second), allocations, heap=8 * MIB + second * MIB))
        recorder._waiting.join()
    recorder.finish(sample_report())
    assert [line for line in said if "reached its limit" in line] == said[:1] and len(said) == 2
    with Recording(tmp_path / "a.memtrace") as recording:
        assert recording.origin.lean is not None
        assert recording.looks[-1].rss.anon == 8 * MIB + 29 * MIB
        assert recording.report() == sample_report(), "the report is whole"


def test_only_what_changed_is_written() -> None:
    observer, first = Observer(), look(1.0, {LEAK: (1, 100, 0, 0, 0, 0), CACHE: (1, 50, 0, 0, 0, 0)})
    assert len(observer.changes(first).series["stack_looks"]) == 2
    same_vmas = look(2.0, {LEAK: (2, 200, 0, 0, 0, 0), CACHE: (1, 50, 0, 0, 0, 0)}, seen=first.snapshot)
    changes = observer.changes(same_vmas)
    assert changes.series["stack_looks"] == [(1, 200, 2, 200, 2, 0, 0)]
    assert changes.series["class_looks"] == changes.series["vma_looks"] == [] and changes.meta == {}
    grown = observer.changes(look(3.0, {}, heap=9 * MIB))
    assert [row[0] for row in grown.series["class_looks"]] == ["heap"] and len(grown.series["vma_looks"]) == 1


def test_a_vma_that_goes_and_a_mapping_that_is_given_back() -> None:
    observer = Observer()
    there = look(1.0, {}, seen=snapshot(1.0, MIB, extra=MIB), mapped={("mmap", 5): Held(MIB, 1, MIB, 1, 0, 0)})
    number = [row for row in observer.changes(there).series["vma_looks"] if row[2] == MIB][-1][0]
    gone = observer.changes(look(2.0, {}, seen=snapshot(2.0, MIB), mapped={}))
    assert (number, 0, 0) in gone.series["vma_looks"]
    assert gone.series["stack_looks"] == [(1, 0, 0, MIB, 1, MIB, 1)]


# Its end.

ENDLESS = """
import itertools, sys
from pathlib import Path
from tests.unit.recordings import look, window
from tests.unit.reports import MIB
from tracer.store.recorder import FileRecorder
recorder = FileRecorder(Path(sys.argv[1]), force=False, pid=1, options={}, say=print)
recorder.begin(window())
for second in itertools.count(1):
    allocations = {stack: (second, second * stack, 0, 0, 0, 0) for stack in range(1, 500)}
    recorder.look(look(float(second), allocations, heap=8 * MIB + second))
    if second <= 3:
        recorder._waiting.join()
    if second == 3:
        print("recording", flush=True)
"""


def test_killed_at_any_moment_the_one_file_is_whole(tmp_path: Path) -> None:
    for attempt in range(12):
        place = tmp_path / str(attempt)
        place.mkdir()
        path = place / "a.memtrace"
        with subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "recording\n"
            threading.Event().wait(attempt * 0.007)
            process.send_signal(signal.SIGKILL)
        wait_for(lambda place=place: os.listdir(place) == ["a.memtrace"])  # type: ignore[misc]
        alone = shutil.copy(path, tmp_path / "alone.memtrace")
        with Recording(Path(alone)) as recording:
            assert recording.origin.command and recording.origin.ended is None
            assert recording.looks[-1].seconds >= 3
            for each in recording.looks[1:]:
                assert each.rss.anon == 8 * MIB + each.seconds
                held = {row.bytes for row in recording.stacks_at(each).values()}
                assert held == {int(each.seconds) * stack for stack in range(1, 500)}


def cut_off_transaction(path: Path) -> None:
    """Leave the file and its journal as a kill in the middle of a transaction does."""
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")  # pages are written before the transaction ends
db.execute("BEGIN IMMEDIATE")
for i in range(3000):
    db.execute("INSERT INTO frames VALUES (?, ?, '', 0, 0, '', '', 0, 0, '', 0, NULL)", (i + 100, "x" * 200))
db.execute("DELETE FROM looks")
os.kill(os.getpid(), 9)
""",
            str(path),
        ]
    ) as process:
        process.wait(DEADLINE)
    assert path.with_name(path.name + "-journal").stat().st_size > 0


def test_a_transaction_that_was_cut_off_is_undone_by_the_guard(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a.memtrace", leaking(5))
    before = path.read_bytes()
    cut_off_transaction(path)
    assert path.read_bytes() != before
    roll_back(path)
    assert os.listdir(tmp_path) == ["a.memtrace"]
    with Recording(path) as recording:
        assert len(recording.looks) == 6


def test_where_the_guard_was_killed_too_the_reader_undoes_it_in_a_copy(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a.memtrace", leaking(5))
    cut_off_transaction(path)
    found = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with Recording(path) as recording:
        assert len(recording.looks) == 6
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == found, "nothing was changed"


def test_the_guard_goes_when_all_is_done(tmp_path: Path) -> None:
    guard = Guard(tmp_path / "a.memtrace")
    child = guard._child
    guard.close()
    guard.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_one_that_is_being_written_can_be_looked_at(record: Record, tmp_path: Path) -> None:
    recorder = record()
    recorder.begin(window())
    for second, each in enumerate(leaking(5), 1):
        recorder.look(each)
        recorder._waiting.join()
        with Recording(tmp_path / "a.memtrace") as recording:
            assert len(recording.looks) in (second, second + 1)
    recorder.finish(sample_report())
    with Recording(tmp_path / "a.memtrace") as recording:
        assert recording.report() == sample_report()
