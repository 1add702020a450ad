"""`memtrace watch` as a person runs it, on real processes: what it prints, where, and how it ends. Needs no BPF."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.harness import DEADLINE, Target, memtrace_command
from tests.bpf.terminal import ALTERNATE_SCREEN, NORMAL_SCREEN, SHOW_CURSOR, Terminal, plain_text
from tests.targets.moves import UNIT
from tests.unit.test_charts import size_of_png

ROOT = Path(__file__).resolve().parents[2]
MOVES = ROOT / "tests" / "targets" / "moves.py"
NOBODY = 65534


@pytest.fixture
def target() -> Iterator[Target]:
    with Target([sys.executable, str(MOVES)]) as process:
        yield process


def run(*arguments: str, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*memtrace_command(), "watch", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        **more,
    )


class Watch:
    """A running `memtrace watch PID --json`, whose records are read as they come."""

    def __init__(self, pid: int, *options: str) -> None:
        self._process = subprocess.Popen(
            [*memtrace_command(), "watch", str(pid), "--json", "-i", "0.1", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def record(self) -> dict[str, Any]:
        """The next record; an empty one at the end of the output."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def until_grown(self, size: int) -> None:
        while (record := self.record())["private"]["growth"] < size:
            assert record["record"] == "sample"

    def stop(self, by: signal.Signals | None = signal.SIGINT) -> tuple[int, dict[str, Any], str]:
        """Exit code, last record and stderr."""
        if by is not None:
            self._process.send_signal(by)
        last: dict[str, Any] = {}
        while record := self.record():
            last = record
        assert self._process.stderr is not None
        error = self._process.stderr.read()
        return self._process.wait(DEADLINE), last, error

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


class TestOutput:
    @pytest.mark.parametrize("columns", [60, 80, 200])
    @pytest.mark.parametrize(
        "env", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
    )
    def test_a_pipe(self, target: Target, columns: int, env: Mapping[str, str]) -> None:
        done = run(str(target.pid), "-d", "0.25", "-i", "0.1", env={"COLUMNS": str(columns), **env})
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert "LC_ALL" not in env or done.stdout.isascii()
        lines = done.stdout.splitlines()
        assert lines[0].startswith("   0 s  private ")
        assert any(line.startswith("Not enough data") for line in lines)
        assert max(map(len, lines)) <= 80, "a pipe has 80 columns, whatever the terminal beside it has"
        assert any(line.startswith("cost  reads that the process may wait for: ") for line in lines)

    def test_json(self, target: Target) -> None:
        done = run(str(target.pid), "--json", "-d", "0.25", "-i", "0.1")
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert {record["schema"] for record in records} == {"memtrace-watch/1"}
        assert [record["record"] for record in records[-2:]] == ["sample", "summary"]
        assert all(record["pid"] == target.pid for record in records)
        seconds = [record["seconds"] for record in records[:-1]]
        assert seconds == sorted(seconds) and len(seconds) >= 3
        assert records[-1]["window"]["ended"] == "the duration was over"

    def test_growth_is_seen_while_it_happens(self, target: Target) -> None:
        with Watch(target.pid) as watch:
            assert watch.record()["record"] == "sample"
            target.command("h")
            watch.until_grown(UNIT - (UNIT >> 3))
            target.command("h")
            watch.until_grown(2 * UNIT - (UNIT >> 2))
            code, summary, error = watch.stop()
        assert (code, error, summary["record"]) == (0, "", "summary")
        assert summary["vmas"][0]["path"] == "[heap]"
        assert summary["window"]["ended"] == "Ctrl-C"

    def test_a_chart(self, target: Target, tmp_path: Path) -> None:
        chart = tmp_path / "growth.png"
        done = run(str(target.pid), "-d", "0.3", "-i", "0.1", "--chart", str(chart))
        assert (done.returncode, done.stderr) == (0, "")
        assert size_of_png(chart.read_bytes())[0] == 1000
        again = run(str(target.pid), "-d", "0.3", "--chart", str(chart))
        assert again.returncode == 2 and "exists" in again.stderr and again.stdout == ""
        assert run(str(target.pid), "-d", "0.1", "--chart", str(chart), "--force").returncode == 0

    def test_a_reader_that_is_gone(self, target: Target) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with subprocess.Popen(
            [*memtrace_command(), "watch", str(target.pid)],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            os.close(writer)
            _, error = process.communicate(timeout=DEADLINE)
        assert (process.returncode, error) == (1, "")

    def test_a_full_disk(self, target: Target) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*memtrace_command(), "watch", str(target.pid), "-d", "0.1"],
                cwd=ROOT,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=DEADLINE,
            )
        assert done.returncode == 1
        assert done.stderr.startswith("memtrace: standard output cannot be written to")


class TestEnds:
    @pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal(self, target: Target, by: signal.Signals) -> None:
        with Watch(target.pid) as watch:
            watch.record()
            code, summary, _ = watch.stop(by)
        assert (code, summary["record"]) == (0, "summary")

    def test_the_end_of_the_process(self, target: Target) -> None:
        with Watch(target.pid) as watch:
            watch.record()
            target.quit()
            code, summary, _ = watch.stop(None)
        assert (code, summary["window"]["ended"]) == (0, "the process ended")

    def test_exec(self, target: Target) -> None:
        with Watch(target.pid) as watch:
            watch.record()
            target.command("h")
            watch.until_grown(UNIT >> 1)
            target.command("x")
            while watch.record()["private"]["growth"]:
                pass
            code, summary, _ = watch.stop()
        assert code == 0
        assert any("exec" in note for note in summary["notes"])

    def test_the_process_is_not_held_up_by_it(self, target: Target) -> None:
        with Watch(target.pid) as watch:
            watch.record()
            assert target.state() == "S" and target.is_waiting()
            watch.stop()


class TestRefusals:
    def check(self, arguments: list[str], code: int, words: str, **more: Any) -> None:
        done = run(*arguments, **more)
        assert (done.returncode, done.stdout) == (code, ""), done
        assert done.stderr.startswith("memtrace: ") and words in done.stderr
        assert len(done.stderr.splitlines()) <= 2

    def test_no_such_process(self) -> None:
        self.check([str(1 << 22)], 1, "there is no process 4194304")

    def test_a_kernel_thread(self) -> None:
        if "Kthread:\t1" not in Path("/proc/2/status").read_text():
            pytest.skip("process 2 is no kernel thread here")
        self.check(["2"], 1, "is a kernel thread")

    def test_a_zombie(self) -> None:
        with subprocess.Popen(["true"]) as child:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            self.check([str(child.pid)], 1, "zombie")

    def test_a_thread(self, target: Target) -> None:
        code = "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start(); print('r', flush=True)"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            thread = max(map(int, os.listdir(f"/proc/{process.pid}/task")))
            self.check([str(thread)], 1, f"memtrace watch {process.pid}")
            process.kill()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "PID"),
            (["x"], "is no process id"),
            (["1", "-i", "0.01"], "interval"),
            (["1", "-d", "nan"], "duration"),
            (["1", "-n", "0"], "top"),
            (["1", "--chart", "x.pdf"], ".svg or a .png"),
            (["1", "--chart", "/proc/x.svg"], "cannot be written"),
        ],
    )
    def test_usage(self, arguments: list[str], words: str) -> None:
        self.check(arguments, 2, words)


def as_nobody() -> dict[str, Any]:
    """Run as a user without any rights; skips where that cannot be, or where the checkout is closed to others."""
    if os.geteuid():
        pytest.skip("needs root, to become another user")
    done = subprocess.run(
        [*memtrace_command(), "--version"], cwd=ROOT, capture_output=True, user=NOBODY, group=NOBODY, extra_groups=[]
    )
    if done.returncode:
        pytest.skip("this checkout cannot be read by other users")
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


class TestRights:
    def test_ones_own_process_needs_no_root(self) -> None:
        nobody = as_nobody()
        with subprocess.Popen(["sleep", "99"], **nobody) as process:
            done = run(str(process.pid), "-d", "0.2", "-i", "0.1", "--json", **nobody)
            process.kill()
        summary = json.loads(done.stdout.splitlines()[-1])
        assert (done.returncode, summary["record"]) == (0, "summary")
        assert {"heap", "file", "stack"} <= {row["class"] for row in summary["classes"]}

    def test_another_users_process_is_refused_with_the_fix(self, target: Target) -> None:
        done = run(str(target.pid), **as_nobody())
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[0] == f"memtrace: no permission to read /proc/{target.pid}/maps"
        assert "sudo" in done.stderr.splitlines()[1]


class TestTerminal:
    def test_the_screen_and_the_summary_after_it(self, target: Target) -> None:
        with Terminal("watch", str(target.pid), "-i", "0.1") as terminal:
            terminal.read_until(b"Memory by class")
            assert ALTERNATE_SCREEN in terminal.output
            terminal.write(b"h")
            terminal.read_until(b"stop and print the summary")
            terminal.write(b"q")
            assert terminal.finish() == 0
            assert terminal.settings() == terminal.settings_before
            summary = terminal.after_live_view()
        assert "ended: the key q" in summary and "Memory by class" in summary

    @pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_restores_it(self, target: Target, by: signal.Signals) -> None:
        with Terminal("watch", str(target.pid), "-i", "0.1") as terminal:
            terminal.read_until(b"Memory by class")
            os.kill(terminal.pid, by)
            assert terminal.finish() == 0
            assert terminal.settings() == terminal.settings_before
            assert SHOW_CURSOR in terminal.output and NORMAL_SCREEN in terminal.output
            assert "Memory by class" in terminal.after_live_view()

    def test_a_terminal_that_is_closed(self, target: Target) -> None:
        with Terminal("watch", str(target.pid), "-i", "0.1") as terminal:
            terminal.read_until(b"Memory by class")
            terminal.hang_up()
            assert terminal.code is not None

    def test_a_dumb_terminal_gets_lines(self, target: Target) -> None:
        with Terminal("watch", str(target.pid), "-i", "0.1", "-d", "0.3", env={"TERM": "dumb"}) as terminal:
            assert terminal.finish() == 0
            output = terminal.output
        assert ALTERNATE_SCREEN not in output
        assert "   0 s  private" in plain_text(output) and "Memory by class" in plain_text(output)

    @pytest.mark.parametrize("columns", [60, 200])
    def test_it_has_the_width_of_the_terminal(self, target: Target, columns: int) -> None:
        with Terminal("watch", str(target.pid), "-i", "0.1", "-d", "0.3", columns=columns) as terminal:
            assert terminal.finish() == 0
            lines = terminal.after_live_view().splitlines()
        assert max(map(len, lines)) <= columns

    def test_no_colour(self, target: Target) -> None:
        with Terminal("watch", str(target.pid), "-i", "0.1", "-d", "0.3", env={"NO_COLOR": "1"}) as terminal:
            assert terminal.finish() == 0
            output = terminal.output
        assert not any(f"\x1b[{code}m".encode() in output for code in (31, 32, 36))
