"""Every way in which memtrace, its target, its output or its terminal may end: the report is made, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.bpf.conftest import StartTarget
from tests.bpf.harness import (
    DEADLINE,
    ROOT,
    Finished,
    Memtrace,
    memtrace_command,
    run_memtrace,
    totals_by_function,
    wait_for,
)
from tests.bpf.kernel import bpf_objects, held_objects
from tests.bpf.terminal import ALTERNATE_SCREEN, HIDE_CURSOR, NORMAL_SCREEN, SHOW_CURSOR, Terminal, plain_text
from tests.bpf.watching import code_of

pytestmark = pytest.mark.bpf

CANNOT_TRACE, USAGE = 1, 2


# The target's end.


def test_a_target_that_exits_is_reported(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    with Memtrace(target.pid) as memtrace:
        truth = target.go()["stacks"]["leak_by_malloc"]
        assert target.quit() == 0
        report = memtrace.finish().required_report()
    leak = totals_by_function(report, ["leak_by_malloc"])["leak_by_malloc"]
    assert (leak["bytes"], leak["count"]) == (truth["bytes"], truth["count"])
    assert [note for note in report["notes"] if "ended" in note]


def test_a_target_that_is_killed_is_reported(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    with Memtrace(target.pid) as memtrace:
        truth = target.go()["stacks"]["leak_by_malloc"]
        os.kill(target.pid, signal.SIGKILL)
        report = memtrace.finish().required_report()
    assert totals_by_function(report, ["leak_by_malloc"])["leak_by_malloc"]["bytes"] == truth["bytes"]
    assert [note for note in report["notes"] if "ended" in note]


def test_a_target_that_ends_at_any_time_is_refused_or_reported() -> None:
    outcomes = {_trace_one_that_lives(milliseconds / 1000) for milliseconds in range(0, 1200, 200)}
    assert CANNOT_TRACE in outcomes  # those that ended at once were caught before tracing


def _trace_one_that_lives(seconds: float) -> int:
    # Its parent takes leave of it at once, as a shell does; a target that stays a zombie is in test_errors.py.
    with subprocess.Popen(["sleep", str(seconds)]) as target:
        memtrace = subprocess.Popen(
            [*memtrace_command(), str(target.pid), "-d", "60", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        target.wait(DEADLINE)
        stdout, stderr = memtrace.communicate(timeout=DEADLINE)
    assert memtrace.returncode in (0, CANNOT_TRACE), stderr
    assert "Traceback" not in stderr and "memtrace failed" not in stderr, stderr
    if memtrace.returncode:
        assert stdout == ""
        errors = [line for line in stderr.splitlines() if line.startswith("memtrace: ")]
        assert len(errors) == 1 and ("ended" in errors[0] or "no process" in errors[0]), stderr
    else:
        assert stdout.startswith("{"), stderr
    return memtrace.returncode


def test_exec_is_told_and_followed(start_target: StartTarget) -> None:
    target = start_target("execer")
    with Memtrace(target.pid, "-i", "0.1") as memtrace:
        assert target.go()["ready"]  # what the new image says
        wait_for(lambda: _is_probed(target.pid), "the new image is probed")
        truth = target.go()["stacks"]["leak_after_exec"]
        report = memtrace.stop().required_report()
    leaks = totals_by_function(report, ["leak_before_exec", "leak_after_exec"])
    assert leaks["leak_before_exec"]["count"] == 0
    assert leaks["leak_after_exec"]["bytes"] == truth["bytes"]
    assert [note for note in report["notes"] if "exec" in note]


def _is_probed(pid: int) -> bool:
    """Whether libc's code in a process differs from its file: by breakpoints."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        libc = [line.split() for line in maps if "libc.so" in line and " r-xp " in line]
    if not libc:
        return False
    start, end = (int(bound, 16) for bound in libc[0][0].split("-"))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, open(libc[0][5], "rb") as file:
        memory.seek(start)
        file.seek(int(libc[0][2], 16))
        return memory.read(end - start) != file.read(end - start)


# The end of memtrace.


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_the_report(start_target: StartTarget, by: signal.Signals) -> None:
    target = start_target("leak_malloc")
    with Memtrace(target.pid) as memtrace:
        truth = target.go()["stacks"]["leak_by_malloc"]
        report = memtrace.stop(by).required_report()
    assert totals_by_function(report, ["leak_by_malloc"])["leak_by_malloc"]["bytes"] == truth["bytes"]


def test_killed_it_leaves_nothing(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    code = code_of(target.pid)
    with Memtrace(target.pid) as memtrace:
        held = held_objects(memtrace.pid)
        assert code_of(target.pid) != code
        assert memtrace.stop(signal.SIGKILL).code == -signal.SIGKILL
    wait_for(lambda: code_of(target.pid) == code, "code as before")
    wait_for(lambda: not held & bpf_objects(), "programs, maps and links freed")
    target.go()
    assert target.quit() == 0


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_starts_ends_it_without_a_traceback(start_target: StartTarget, by: signal.Signals) -> None:
    target = start_target("leak_malloc")
    for milliseconds in range(0, 300, 50):
        began = time.monotonic()
        with Memtrace(target.pid, await_tracing=False) as memtrace:
            wait_for(lambda began=began, due=milliseconds: time.monotonic() - began >= due / 1000, "that long")  # type: ignore[misc]
            done = memtrace.stop(by)
        # Before its first own line runs, Python is only starting, and its words are not ours.
        assert "/tracer/" not in done.stderr, f"{milliseconds} ms: {done.stderr}"
        assert "Traceback" in done.stderr or done.code in (0, CANNOT_TRACE, -by), f"{milliseconds} ms: {done}"
        assert done.stderr.strip() or done.code < 0, f"{milliseconds} ms: ended with {done.code} and said nothing"


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_its_parent_had_ignored_does_not_end_it(
    start_target: StartTarget, ignored: signal.Signals
) -> None:
    # nohup(1) ignores SIGHUP, a shell's background job without job control SIGINT.
    target = start_target("leak_malloc")
    shell = f'trap "" {ignored.name.removeprefix("SIG")}; exec "$@"'
    with subprocess.Popen(
        ["sh", "-c", shell, "sh", *memtrace_command(), str(target.pid)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as memtrace:
        assert memtrace.stderr is not None
        assert memtrace.stderr.readline().startswith("tracing ")
        memtrace.send_signal(ignored)
        # Two more lines of progress: had it been ended, there would be none.
        assert [memtrace.stderr.readline().strip()[:1].isdigit() for _ in range(2)] == [True, True]
        memtrace.terminate()
        stdout, _ = memtrace.communicate(timeout=DEADLINE)
    assert "ended: SIGTERM" in stdout


def test_two_at_once_on_one_target_see_the_same(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    with Memtrace(target.pid) as first, Memtrace(target.pid) as second:
        truth = target.go()["stacks"]["leak_by_malloc"]
        seen = [first.stop().required_report()]
        more = target.go()["stacks"]["leak_by_malloc"]  # the one that is left goes on
        seen.append(second.stop().required_report())
    leaks = [totals_by_function(report, ["leak_by_malloc"])["leak_by_malloc"]["bytes"] for report in seen]
    assert leaks == [truth["bytes"], more["bytes"]]


# Where the report goes.


def test_the_reader_may_stop_reading(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    shell = '"$@" -d 0.2 | head -1'
    done = _shell(shell, str(target.pid))
    assert done.stdout.startswith("RSS grew") and done.stdout.count("\n") == 1
    _assert_no_noise(done.stderr)


def test_a_reader_that_has_gone_before_the_report(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    done = _shell('"$@" -d 0.2 | true', str(target.pid))
    _assert_no_noise(done.stderr)


def test_a_full_disk_behind_stdout_is_one_clear_line(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    for format_option in ((), ("--json",)):
        done = _shell('"$@" -d 0.2 >/dev/full', str(target.pid), *format_option)
        errors = [line for line in done.stderr.splitlines() if line.startswith("memtrace: ")]
        assert len(errors) == 1 and "No space left on device" in errors[0], done.stderr
        assert "memtrace failed" not in errors[0], done.stderr
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
        assert done.code == CANNOT_TRACE


def test_a_full_disk_behind_stderr_costs_no_report(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    done = _shell('"$@" -d 0.2 -i 0.1 2>/dev/full', str(target.pid))
    assert (done.code, done.stdout[:8]) == (0, "RSS grew")


@pytest.mark.parametrize("closed", ["<&-", "2>&-"])
def test_a_closed_stdin_or_stderr_costs_no_report(start_target: StartTarget, closed: str) -> None:
    target = start_target("leak_malloc")
    done = _shell(f'"$@" -d 0.2 {closed}', str(target.pid))
    assert (done.code, done.stdout[:8]) == (0, "RSS grew"), done


def test_a_closed_stdout_is_one_clear_line_unless_there_is_a_file(start_target: StartTarget, tmp_path: Path) -> None:
    target = start_target("leak_malloc")
    done = _shell('"$@" -d 0.2 >&-', str(target.pid))
    errors = [line for line in done.stderr.splitlines() if line.startswith("memtrace: ")]
    assert len(errors) == 1 and "memtrace failed" not in errors[0] and done.code == CANNOT_TRACE, done.stderr

    done = _shell('"$@" -d 0.2 >&-', str(target.pid), "-o", str(tmp_path / "report"))
    assert done.code == 0, done.stderr
    assert (tmp_path / "report").read_text().startswith("RSS grew")


def test_a_full_disk_behind_the_file_leaves_the_report_to_stdout(start_target: StartTarget, tmp_path: Path) -> None:
    target = start_target("leak_malloc")
    script = (
        f"mount -t tmpfs -o size=8k none {tmp_path} && head -c 8192 /dev/zero > {tmp_path}/filler && "
        f'"$@" -d 0.2 -o {tmp_path}/report; code=$?; ls -A {tmp_path} >&2; exit $code'
    )
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", *memtrace_command(), str(target.pid)]
    done = _run(argv)
    *told, listed = done.stderr.splitlines()
    assert done.stdout.startswith("RSS grew")
    assert [line for line in told if line.startswith("memtrace: ") and "No space left on device" in line], done.stderr
    assert (done.code, listed) == (CANNOT_TRACE, "filler")
    assert "Traceback" not in done.stderr


def test_a_file_that_exists_is_refused_before_tracing(start_target: StartTarget, tmp_path: Path) -> None:
    target = start_target("leak_malloc")
    report = tmp_path / "report"
    report.write_text("mine")
    done = run_memtrace(str(target.pid), "-d", "60", "-o", str(report))  # the duration would pass the deadline
    assert (done.code, done.stdout, report.read_text()) == (USAGE, "", "mine")
    assert "tracing" not in done.stderr and "--force" in done.stderr and len(done.stderr.splitlines()) == 2

    done = run_memtrace(str(target.pid), "-d", "0.2", "-o", str(report), "--force")
    assert (done.code, done.stdout) == (0, "")
    assert report.read_text().startswith("RSS grew")
    assert list(tmp_path.iterdir()) == [report]


def test_a_file_is_there_only_with_a_whole_report_in_it(start_target: StartTarget, tmp_path: Path) -> None:
    target = start_target("leak_malloc")
    report = tmp_path / "report"
    with Memtrace(target.pid, "-o", str(report)) as memtrace:
        assert not report.exists()
        done = memtrace.stop()
    assert (done.code, done.stdout) == (0, "")
    assert report.read_text().startswith('{"schema"')
    assert list(tmp_path.iterdir()) == [report]


# The live view, in 80 columns and 24 lines.


def test_q_ends_the_live_view_and_prints_the_report_on_the_normal_screen(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    with Terminal(str(target.pid), "-i", "0.1") as terminal:
        terminal.read_until(ALTERNATE_SCREEN)
        terminal.read_until(b"q quit")
        assert terminal.settings() != terminal.settings_before  # single keys, without echo
        terminal.write(b"q")
        assert terminal.finish() == 0
        _assert_left_in_order(terminal)
    assert "ended: the key q" in _unwrapped(terminal.after_live_view())


def test_the_live_view_fits_the_terminal(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    with Terminal(str(target.pid), "-i", "0.1", columns=80, lines=24) as terminal:
        terminal.read_until(b"q quit")
        target.go()
        terminal.read_until(b"leak_by_malloc")
        terminal.write(b"h")
        terminal.read_until(b"show or hide this help")
        terminal.write(b"hsq")
        assert terminal.finish() == 0
    live = terminal.output.partition(ALTERNATE_SCREEN)[2].rpartition(NORMAL_SCREEN)[0]
    for frame in live.split(b"\x1b[H")[1:]:
        lines = plain_text(frame).split("\n")
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
    assert max(map(len, terminal.after_live_view().split("\n"))) <= 80


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(start_target: StartTarget, by: signal.Signals) -> None:
    target = start_target("leak_malloc")
    with Terminal(str(target.pid), "-i", "0.1") as terminal:
        terminal.read_until(b"q quit")
        if by == signal.SIGINT:
            terminal.write(b"\x03")  # as the key does it
        else:
            os.kill(terminal.pid, by)
        assert terminal.finish() == 0
        _assert_left_in_order(terminal)


def test_the_targets_end_leaves_the_terminal_as_it_was(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    with Terminal(str(target.pid), "-i", "0.1") as terminal:
        terminal.read_until(b"q quit")
        assert target.quit() == 0
        assert terminal.finish() == 0
        _assert_left_in_order(terminal)


def test_a_closed_terminal_ends_it(start_target: StartTarget, tmp_path: Path) -> None:
    target = start_target("leak_malloc")
    report = tmp_path / "report"
    with Terminal(str(target.pid), "-i", "0.1", "-o", str(report)) as terminal:
        terminal.read_until(b"q quit")
        assert terminal.hang_up() == 0
    assert "the terminal was closed" in _unwrapped(report.read_text())


def test_a_terminal_that_can_do_nothing_gets_lines(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    with Terminal(str(target.pid), "-i", "0.1", "-d", "0.5", env={"TERM": "dumb"}) as terminal:
        assert terminal.finish() == 0
        assert terminal.settings() == terminal.settings_before
    assert b"\x1b[" not in terminal.output
    assert "RSS grew" in plain_text(terminal.output)


def _assert_left_in_order(terminal: Terminal) -> None:
    assert terminal.settings() == terminal.settings_before
    assert terminal.output.count(ALTERNATE_SCREEN) == terminal.output.count(NORMAL_SCREEN) == 1
    assert terminal.output.rfind(SHOW_CURSOR) > terminal.output.rfind(HIDE_CURSOR)
    report = terminal.after_live_view()
    assert report.strip().startswith("RSS grew")
    assert "losses" in report  # to its end
    assert "Traceback" not in report


def _unwrapped(text: str) -> str:
    return " ".join(text.split())


def _shell(script: str, *arguments: str) -> Finished:
    """Runs a shell script whose "$@" is the command under test with arguments."""
    return _run(["sh", "-c", script, "sh", *memtrace_command(), *arguments])


def _run(argv: list[str]) -> Finished:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE, check=False
    )
    return Finished(done.returncode, None, done.stdout, done.stderr)


def _assert_no_noise(stderr: str) -> None:
    # What is left is the line `tracing ...` and those of progress.
    assert "Traceback" not in stderr and "Exception ignored" not in stderr, stderr
    assert "memtrace failed" not in stderr, stderr
    assert "BrokenPipe" not in stderr, stderr
