"""Recordings of real processes: what was shown is shown again, and a leak is named however the recording ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.conftest import StartTarget
from tests.bpf.harness import Finished, Json, run_memtrace, totals_by_function, wait_for
from tests.bpf.runs import Watched
from tracer.store.recording import Recording

pytestmark = pytest.mark.bpf

FAST = ("-i", "0.1")
USAGE, ABOVE = 2, 3


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "session.memtrace"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 512 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def report_of(file: Path, *options: str) -> Finished:
    return run_memtrace("report", str(file), *options)


def json_of(file: Path, *options: str) -> Json:
    return report_of(file, "--json", *options).required_report()


def leaked(report: Json) -> int:
    return int(totals_by_function(report, ["leak_by_malloc"], "malloc")["leak_by_malloc"]["bytes"])


def test_the_report_is_what_the_session_showed(start_target: StartTarget, file: Path, tmp_path: Path) -> None:
    target = start_target("leak_malloc")
    page, later = tmp_path / "live.html", tmp_path / "later.html"
    with Watched(target.pid, *FAST, "--json", "-o", "-", "-o", str(file), "-o", str(page)) as memtrace:
        truth = target.go()["stacks"]["leak_by_malloc"]
        memtrace.wait_for_ticks(3)
        done = memtrace.stop()
    assert leaked(done.required_report()) == truth["bytes"]
    assert f"recorded in {file}" in done.stderr
    again = report_of(file, "--json", "-o", "-", "-o", str(later))
    assert (again.code, again.stdout) == (0, done.stdout)
    assert again.stderr.splitlines() == [f"wrote {later} (html: one page for a browser, to attach)"]
    assert later.read_bytes() == page.read_bytes()
    assert report_of(file).stdout.startswith(done.required_report()["verdict"]["text"][:30])
    assert sorted(os.listdir(tmp_path)) == ["later.html", "live.html", "session.memtrace"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_part_of_it_names_what_grew_then(start_target: StartTarget, file: Path) -> None:
    target = start_target("leak_malloc")
    with Watched(target.pid, *FAST, "-o", str(file)) as memtrace:
        memtrace.wait_for_ticks(2)
        first = target.go()["stacks"]["leak_by_malloc"]["bytes"]
        memtrace.wait_for_ticks(3)
        with Recording(file) as recording:  # while it is being written
            middle = recording.looks[-1].seconds
        both = target.go()["stacks"]["leak_by_malloc"]["bytes"]
        memtrace.wait_for_ticks(2)
        memtrace.stop().required_report()
    assert leaked(json_of(file, "--to", str(middle))) == first
    later = json_of(file, "--from", str(middle))
    assert leaked(later) == both - first and later["basis"] == "looks"
    assert sum(row["bytes"] for row in later["ledger"]) == later["rss"]["growth"]


def test_killed_in_mid_recording_it_names_the_leak(start_target: StartTarget, file: Path, tmp_path: Path) -> None:
    target = start_target("leak_malloc")
    with Watched(target.pid, *FAST, "-o", str(file)) as memtrace:
        truth = target.go()["stacks"]["leak_by_malloc"]
        memtrace.wait_for_ticks(5)
        memtrace.stop(signal.SIGKILL)
    wait_for(lambda: not file.with_name(file.name + "-journal").exists(), "the guard has gone")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    report = json_of(Path(shutil.copy(file, elsewhere)))
    assert leaked(report) == truth["bytes"]
    assert report["basis"] == "looks" and "without the session's end" in report["window"]["ended"]
    assert "without an end" in report["verdict"]["text"]
    assert any("worked out only at the end" in note for note in report["notes"])


def test_a_full_disk_stops_the_recording_and_not_the_session(start_target: StartTarget, small_disk: Path) -> None:
    target = start_target("leak_malloc")
    file = small_disk / "session.memtrace"
    with Watched(target.pid, *FAST, "-o", str(file)) as memtrace:
        first = target.go()["stacks"]["leak_by_malloc"]
        memtrace.wait_for_ticks(3)
        with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        second = target.go()["stacks"]["leak_by_malloc"]
        memtrace.wait_for_ticks(4)
        done = memtrace.stop()
    assert leaked(done.required_report()) == second["bytes"], "tracing went on"
    lines = [line for line in done.stderr.splitlines() if "the recording has stopped" in line]
    assert len(lines) == 1 and "full" in lines[0] and "Traceback" not in done.stderr
    report = json_of(file)
    assert leaked(report) == first["bytes"] and report["basis"] == "looks"


def test_a_disk_that_is_full_from_the_start_is_refused(start_target: StartTarget, small_disk: Path) -> None:
    target = start_target("leak_malloc")
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(bytes(4096))
    done = run_memtrace(str(target.pid), "-d", "1", "-o", str(small_disk / "a.memtrace"))
    assert done.code == USAGE and "cannot be written" in done.stderr and len(done.stderr.splitlines()) == 2
    assert os.listdir(small_disk) == ["filler"]


def test_it_does_not_overwrite(start_target: StartTarget, file: Path) -> None:
    target = start_target("leak_malloc")
    file.write_text("kept")
    done = run_memtrace("record", str(target.pid), "-d", "0.5", "-o", str(file))
    assert done.code == USAGE and "--force" in done.stderr and file.read_text() == "kept"
    assert run_memtrace("record", str(target.pid), "-d", "0.5", "-o", str(file), "--force").code == 0
    assert json_of(file)["pid"] == target.pid


def test_a_target_that_ends_is_recorded_to_its_end(start_target: StartTarget, file: Path) -> None:
    target = start_target("leak_malloc")
    with Watched(target.pid, *FAST, "-o", str(file)) as memtrace:
        truth = target.go()["stacks"]["leak_by_malloc"]
        os.kill(target.pid, signal.SIGKILL)
        done = memtrace.finish()
    assert report_of(file, "--json").stdout == done.stdout and leaked(json_of(file)) == truth["bytes"]
    assert "the process ended" in json_of(file)["window"]["ended"]


def test_an_exec_begins_the_recording_anew(start_target: StartTarget, file: Path) -> None:
    target = start_target("execer")
    with Watched(target.pid, *FAST, "-o", str(file)) as memtrace:
        assert target.go()["ready"]
        memtrace.wait_for_probes("glibc", times=2)
        truth = target.go()["stacks"]["leak_after_exec"]
        memtrace.wait_for_ticks(2)
        done = memtrace.stop()
    assert report_of(file, "--json").stdout == done.stdout
    with Recording(file) as recording:
        last = recording.looks[-1]
        held = {recording.stacks[number].stack: row.bytes for number, row in recording.stacks_at(last).items()}
        assert held and all(known.frames is not None for known in recording.stacks.values())
    leaks = totals_by_function(json_of(file, "--from", "0"), ["leak_before_exec", "leak_after_exec"], "malloc")
    assert (leaks["leak_before_exec"]["stacks"], leaks["leak_after_exec"]["bytes"]) == (0, truth["bytes"])


def test_a_fix_is_found_in_a_rebuilt_program(start_target: StartTarget, tmp_path: Path) -> None:
    files = []
    for name in ("leaky-server", "fixed-server"):
        target = start_target(name, "--json")
        files.append(tmp_path / f"{name}.memtrace")
        with Watched(target.pid, "-i", "0.25", "-d", "5", "-o", str(files[-1])) as memtrace:
            memtrace.finish().required_report()
        target.close()
    done = run_memtrace("diff", *map(str, files), "--json")
    assert done.code == 0, done.stderr
    comparison = json.loads(done.stdout)
    status = {each["name"][0].split()[0]: each["status"] for each in comparison["stacks"] if each["kind"] == "malloc"}
    assert status["store_attributes"] == status["session_create"] == "gone"
    assert comparison["stacks"][0]["name"][0].startswith("store_attributes"), "what changed most comes first"
    assert comparison["rss"]["status"] == "slower"
    text = run_memtrace("diff", *map(str, files))
    assert "gone" in next(line for line in text.stdout.splitlines() if line.startswith(" #1"))
    assert run_memtrace("diff", *map(str, reversed(files)), "--fail-above", "60MiB/min").code == ABOVE
    assert run_memtrace("report", str(files[0]), "--fail-above", "60MiB/min").code == ABOVE
    assert run_memtrace("report", str(files[1]), "--fail-above", "10GiB/min").code == 0
