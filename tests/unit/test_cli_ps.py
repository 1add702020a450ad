"""``memtrace ps`` as typed: options, forms of output, exit codes; on made-up processes and on this machine's."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.procs import IOMEM, KERNEL_THREAD, MEMINFO, ZOMBIE, FakeMapping, FakeProc, process, rollup, status
from tracer.cli import main as main_module
from tracer.cli.ps import ps
from tracer.errors import MemtraceError, UsageError
from tracer.ps import Clock, PsRun
from tracer.report.ps_data import chart_rows
from tracer.report.ps_system import system_chart_rows

ROOT = Path(__file__).resolve().parents[2]
KIB = 1024
NOBODY = 65534


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()]


Run = Callable[..., Result]


def machine() -> FakeProc:
    heap = FakeMapping(b"[heap]", size=4096, rss=3000, pss=3000, private_dirty=3000)
    libc = FakeMapping(b"/lib/libc.so.6", rss=900, pss=300, private_dirty=20, perms="r-xp")
    return FakeProc(
        {
            2: KERNEL_THREAD,
            5: process(5, b"redis-server", uid=33, memory=rollup(4000, 3300, (0, 3020)), mappings=(heap, libc)),
            7: process(7, b"python3", b"python3 app.py", memory=rollup(990, 380, (0, 25)), mappings=(libc,)),
            8: process(8, b"secret", denied=True, uid=1000),
            9: ZOMBIE,
        },
        {"meminfo": MEMINFO, "iomem": IOMEM},
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""

    def typed(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["memtrace", "ps", *arguments])
        with pytest.raises(SystemExit) as end:
            main_module.main()
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Result(end.value.code, out, err)

    return typed


@pytest.fixture
def replay(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with --from, on made-up processes."""
    capture = ModuleType("tracer.procfs.capture")
    capture.CaptureSource = lambda path: machine()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tracer.procfs.capture", capture)
    return lambda *arguments: run("--from", "x.tar", *arguments)


def test_help_names_every_option(run: Run) -> None:
    result = run("--help")
    assert result.code == 0 and max(map(len, result.out.splitlines())) <= 80
    for parameter in ps.params:
        assert parameter.name == "pids" or max(parameter.opts, key=len) in result.out


def test_all_processes(replay: Run) -> None:
    result = replay()
    assert (result.code, result.err) == (0, "")
    titles, *rows = result.rows[:-2]
    assert titles == ["PID", "USER", "SWAP", "USS", "PSS", "RSS", "VSS", "COMMAND"]
    assert [row[0] for row in rows] == ["8", "7", "5"]
    assert rows[0][3:5] == ["-", "-"]
    assert "3 processes; 1 kernel thread and 1 zombie without memory" in result.out


class TestForms:
    def test_json(self, replay: Run) -> None:
        document = json.loads(replay("--json").out)
        assert document["schema"] == "memtrace-ps/1" and document["by"] == "process"
        assert [row["pid"] for row in document["rows"]] == [8, 7, 5]
        redis = document["rows"][-1]
        sizes = {"uss": 3020 * KIB, "pss": 3300 * KIB, "rss": 4000 * KIB, "vss": 1000 * KIB, "swap": 0, "swap_pss": 0}
        assert redis.items() >= (sizes | {"name": "redis-server", "user": "www-data", "unreadable": None}).items()
        assert document["rows"][0]["pss"] is None and document["unreadable"][0]["pid"] == 8
        assert document["counts"] == {"processes": 3, "unreadable": 1, "kernel_threads": 1, "zombies": 1, "ended": 0}
        assert document["totals"]["at_least"] == ["pss", "swap_pss", "uss"]
        assert (document["memory"], document["swap"]) == (16_000_000 * KIB, 2_000_000 * KIB)

    def test_json_by_mapping(self, replay: Run) -> None:
        document = json.loads(replay("--json", "-m").out)
        assert [(row["mapping"], row["pids"], row["maps"], row["pss"]) for row in document["rows"]] == [
            ("/lib/libc.so.6", 2, 2, 600 * KIB),
            ("[heap]", 1, 1, 3000 * KIB),
        ]

    def test_csv_is_bytes(self, replay: Run) -> None:
        rows = list(csv.DictReader(io.StringIO(replay("--csv").out)))
        assert rows[-1] == {
            "pid": "5", "user": "www-data", "swap": "0", "uss": str(3020 * KIB), "pss": str(3300 * KIB),
            "rss": str(4000 * KIB), "vss": str(1000 * KIB), "command": "/usr/bin/redis-server",
        }  # fmt: skip
        assert rows[0]["pss"] == ""

    def test_csv_with_totals_and_without_header(self, replay: Run) -> None:
        rows = list(csv.reader(io.StringIO(replay("--csv", "-t", "-H", "-c", "pid rss command").out)))
        assert rows[-1] == ["", str((4000 + 990 + 160) * KIB), "total"] and len(rows) == 4

    def test_hostile_names_are_data_in_every_form(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        evil = b'\x1b[2J\xff,"x"\n=1+1'
        source = FakeProc({5: process(5, b"x", evil)}, {"meminfo": MEMINFO})
        capture = ModuleType("tracer.procfs.capture")
        capture.CaptureSource = lambda path: source  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tracer.procfs.capture", capture)
        for form in ((), ("--csv",), ("--json",), ("--bars",)):
            out = run("--from", "x", *form).out
            assert "\x1b" not in out and out.encode()
        assert json.loads(run("--from", "x", "--json").out)["rows"][0]["command"] == '\x1b[2J\\xff,"x"\n=1+1'
        (row,) = csv.DictReader(io.StringIO(run("--from", "x", "--csv").out))
        assert row["command"] == r'\x1b[2J\xff,"x"\n=1+1'

    def test_the_whole_machine(self, replay: Run) -> None:
        text = replay("-w")
        assert (text.code, text.rows[0]) == (0, ["AREA", "USED", "CACHE", "NONCACHE"])
        document = json.loads(replay("-w", "--json").out)
        assert document["schema"] == "memtrace-ps/1" and document["totals"]["used"] == 16_000_000 * KIB
        rows = list(csv.DictReader(io.StringIO(replay("-w", "--csv").out)))
        assert [row["area"] for row in rows][-1] == "free" and rows[-1]["used"] == str(4_000_000 * KIB)
        assert "25.00%" in replay("-w", "-p").out and "24.41%" in replay("-w", "-R", "16000M").out.replace("25.00", "")

    def test_a_file(self, replay: Run, tmp_path: Path) -> None:
        path = tmp_path / "out.csv"
        assert replay("--csv", "-o", str(path)) == Result(0, "", "")
        assert path.read_text() == replay("--csv").out
        assert replay("--csv", "-o", str(path)).code == 2 and replay("--csv", "-o", str(path), "--force").code == 0


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "pids"),
        [
            (("-P", "redis"), ["5"]),
            (("-P", r"app\.py"), ["7"]),
            (("-U", "^www"), ["5"]),
            (("-M", "heap"), ["5"]),
            (("-M", "libc"), ["5", "7"]),
            (("--pid", "5", "--pid", "7"), ["7", "5"]),
            (("5", "8"), ["8", "5"]),
            (("-r",), ["5", "7", "8"]),
            (("-n", "1"), ["5"]),
            (("-s", "pid"), ["5", "7", "8"]),
            (("-s", "pid", "-r"), ["8", "7", "5"]),
            (("-s", "command"), ["5", "8", "7"]),
            (("-s", "rss", "-n", "2"), ["7", "5"]),
        ],
    )
    def test_what_is_shown(self, replay: Run, arguments: tuple[str, ...], pids: list[str]) -> None:
        result = replay(*arguments, "-H")
        assert result.code == 0 and [row[0] for row in result.rows] == pids

    def test_mappings_that_match_are_all_that_counts(self, replay: Run) -> None:
        rows = replay("-M", "libc", "-H", "-c", "pid rss pss uss maps", "--unit", "k").rows
        assert rows == [["5", "900", "300", "20", "1"], ["7", "900", "300", "20", "1"]]

    def test_who_may_have_such_a_mapping_is_told(self, replay: Run) -> None:
        assert "1 process (RSS 160.0K) could not be read" in replay("-M", "libc").out
        assert json.loads(replay("-M", "libc", "--json").out)["unreadable"][0]["pid"] == 8

    def test_columns(self, replay: Run) -> None:
        assert replay("-c", "pid,name vss", "-H", "--pid", "5").rows == [["5", "redis-server", "1000.0K"]]
        assert replay("-c", "pid maps threads", "-H", "--pid", "5").rows == [["5", "2", "1"]]
        assert "avgpss" in replay("-m", "-c", "help").out and "avgpss" not in replay("-c", "help").out

    def test_users_by_number(self, replay: Run) -> None:
        assert {row[-1] for row in replay("-u", "--numeric", "-H").rows} == {"33", "0", "1000"}
        assert {row[-1] for row in replay("-u", "-H").rows} == {"www-data", "root", "ann"}

    @pytest.mark.parametrize("by", ["mapping", "user", "class", "cgroup", "program"])
    def test_groups(self, replay: Run, by: str) -> None:
        result = replay("--by", by, "-t")
        assert result.code == 0 and result.rows[0][-1] == by.upper()

    def test_by_program_is_what_ps_mem_shows(self, replay: Run) -> None:
        rows = {row[-1]: row for row in replay("--by", "program", "-H", "--unit", "k").rows}
        assert rows["redis-server"][2:5] == ["3020", "280", "3300"]

    def test_shares(self, replay: Run) -> None:
        assert replay("-p", "-H", "-c", "rss", "5").rows == [["0.03%"]]
        assert replay("--percent-of", "4M", "-H", "-c", "rss", "5").rows == [["97.66%"]]

    def test_a_pid_that_is_not_there_is_told(self, replay: Run) -> None:
        result = replay("5", "99", "2", "-H")
        assert result.code == 0 and len(result.rows) == 1
        assert result.err.splitlines() == [
            "memtrace: process 2 (kthreadd) has no memory: it is a kernel thread or a zombie",
            "memtrace: there is no process 99",
        ]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("99",), "there is no process 99"),
            (("-P", "nothing"), "nothing matches process 'nothing'"),
            (("-M", "nothing", "-U", "root"), "mapping 'nothing' and user 'root'"),
            (("-m", "-M", "nothing"), "nothing matches"),
            (("-m", "8"), "1 process could not be read: no permission"),
            (("-M", "nothing"), "nothing matches mapping 'nothing'; 1 process could not be read"),
            (("-P", "redis", "7"), "nothing matches pid 7 and process 'redis'"),
        ],
    )
    def test_nothing_to_show_is_said(self, replay: Run, arguments: tuple[str, ...], words: str) -> None:
        result = replay(*arguments)
        assert (result.code, result.out) == (1, "")
        assert words in result.err and len(result.err.splitlines()) <= 2

    def test_nothing_to_show_is_valid_json_too(self, replay: Run) -> None:
        result = replay("-P", "nothing", "--json")
        assert result.code == 1 and json.loads(result.out)["rows"] == []

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("-c", "avguss"), "no column 'avguss' by process"),
            (("-c", ""), "--columns"),
            (("-s", "nope"), "--sort: there is no column 'nope'"),
            (("-m", "-u"), "by mapping and by user"),
            (("-u", "--by", "class"), "by class and by user"),
            (("--by", "moon"), "moon"),
            (("-P", "("), "--process: '('"),
            (("-M", "["), "--mapping"),
            (("-U", "*"), "--user"),
            (("-w", "-u"), "--by"),
            (("-w", "-P", "x"), "--process"),
            (("-R", "many"), "'many' is no size"),
            (("-R", "0"), "no size"),
            (("--unit", "t"), "unit"),
            (("-n", "0"), "top"),
            (("-i", "0"), "interval"),
            (("-i", "nan"), "interval"),
            (("--count", "3"), "--interval"),
            (("-i", "1"), "a capture holds one look"),
            (("--csv", "--json"), "two forms"),
            (("x",), "no process id"),
            (("--pid", "-3"), "-3"),
        ],
    )
    def test_usage_errors_are_one_clear_line(self, replay: Run, arguments: tuple[str, ...], words: str) -> None:
        result = replay(*arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err.splitlines()[0] and len(result.err.splitlines()) <= 2

    def test_kernel_without_meminfo(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        capture = ModuleType("tracer.procfs.capture")
        capture.CaptureSource = lambda path: replace(machine(), system={})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tracer.procfs.capture", capture)
        assert run("--from", "x", "-p", "-H", "-c", "rss", "5").rows == [["N/A"]]
        assert run("--from", "x", "-w").code == 1


OPTIONS: dict[str, Any] = ps.make_context("ps", []).params


class TestGrowth:
    """Looks at made-up processes; waiting costs no time."""

    def views(self, looks: list[FakeProc], **options: Any) -> list[dict[str, Any]]:
        state = {"now": 100.0, "look": 0}
        source = FakeProc({}, {"meminfo": MEMINFO})
        source.files = looks[0].files

        def sleep(seconds: float) -> None:
            state["now"] += seconds
            state["look"] += 1
            if state["look"] == len(looks):
                raise KeyboardInterrupt
            source.files = looks[int(state["look"])].files

        clock = Clock(lambda: datetime(2026, 1, 2, tzinfo=UTC), lambda: state["now"], sleep)
        chosen = OPTIONS | {"interval": 2.0, "as_json": True} | options
        documents = []
        for render in PsRun.from_options(chosen, print, source=source, clock=clock).views():
            out = io.StringIO()
            render(out)
            documents.append(json.loads(out.getvalue()))
        return documents

    def look(self, sizes: dict[int, int], start: int = 5) -> FakeProc:
        files = {pid: process(pid, memory=rollup(size, size, (0, size)), start=start) for pid, size in sizes.items()}
        return FakeProc(files)

    def test_is_the_difference_of_two_looks(self) -> None:
        (document,) = self.views([self.look({5: 100, 6: 400}), self.look({5: 300, 6: 380})])
        shrunk, grown = document["rows"]
        assert (grown["pid"], grown["growth"]["pss"], grown["rate"]["pss"]) == (5, 200 * KIB, 100.0 * KIB)
        assert (shrunk["pid"], shrunk["growth"]["uss"], shrunk["new"]) == (6, -20 * KIB, False)
        assert document["seconds"] == 2.0 and document["totals"]["growth"]["rss"] == 180 * KIB

    def test_a_new_process_is_all_growth(self) -> None:
        (document,) = self.views([self.look({5: 100}), self.look({5: 100, 6: 50})])
        new = document["rows"][-1]
        assert (new["pid"], new["new"], new["growth"]["pss"]) == (6, True, 50 * KIB)

    def test_a_pid_of_another_process_is_no_shrinking(self) -> None:
        (document,) = self.views([self.look({5: 900}, start=1), self.look({5: 100}, start=2)])
        assert document["rows"][0]["growth"]["pss"] == 100 * KIB

    def test_of_groups_counts_those_that_ended(self) -> None:
        (document,) = self.views([self.look({5: 100, 6: 70}), self.look({5: 130})], by="user")
        assert document["rows"][0]["growth"]["pss"] == -40 * KIB

    def test_as_often_as_asked(self) -> None:
        looks = [self.look({5: 100 * i}) for i in range(1, 5)]
        documents = self.views(looks, count=3)
        assert [document["rows"][0]["growth"]["pss"] for document in documents] == [100 * KIB] * 3

    def test_until_ctrl_c(self) -> None:
        looks = [self.look({5: 100 * i}) for i in range(1, 4)]
        assert len(self.views(looks, count=0)) == 2

    def test_ctrl_c_before_there_is_anything(self) -> None:
        with pytest.raises(KeyboardInterrupt):
            self.views([self.look({5: 1})])

    def test_all_have_gone(self) -> None:
        with pytest.raises(MemtraceError, match="nothing matches"):
            self.views([self.look({5: 1}), FakeProc()])


class TestChartRows:
    def run_of(self, **options: Any) -> PsRun:
        return PsRun.from_options(OPTIONS | options, print, source=machine())

    def test_are_labels_and_values_largest_first(self) -> None:
        run = self.run_of()
        (view,) = run.looks()
        columns = tuple(column for column in run.columns if column.name in ("uss", "pss"))
        assert chart_rows(view, columns) == [
            ("redis-server (5)", (3020 * KIB, 3300 * KIB)),
            ("python3 (7)", (25 * KIB, 380 * KIB)),
            ("secret (8)", (0, 0)),
        ]

    def test_of_the_whole_machine(self) -> None:
        from tracer.model.system import system_memory
        from tracer.procfs.meminfo import read_iomem, read_meminfo

        found = system_memory(read_meminfo(machine()), *read_iomem(machine()))
        assert found is not None
        rows = system_chart_rows(found)
        assert rows[0][0] == "userspace" and sum(values[0] for _, values in rows) == 16_000_000 * KIB


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracer", "ps", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


class TestThisMachine:
    def test_shows_this_process_and_not_itself(self) -> None:
        done = python("--json")
        document = json.loads(done.stdout)
        commands = [row["command"] for row in document["rows"]]
        assert done.returncode == 0 and os.getpid() in [row["pid"] for row in document["rows"]]
        assert not any("tracer ps --json" in command for command in commands)

    def test_does_not_match_the_commands_that_run_it(self) -> None:
        needle = "a-needle-that-is-nowhere-else"
        done = subprocess.run(
            ["sh", "-c", f"timeout 60 {sys.executable} -m tracer ps -P '{needle}'; true memtrace"],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout == "" and "nothing matches process" in done.stderr

    def test_growth_of_a_real_process(self) -> None:
        done = python("-i", "0.1", "--count", "2", "--json", str(os.getpid()))
        documents = [json.loads(line) for line in done.stdout.splitlines()]
        assert [document["rows"][0]["pid"] for document in documents] == [os.getpid()] * 2
        assert all(document["seconds"] >= 0.1 and document["rows"][0]["new"] is False for document in documents)

    @pytest.mark.parametrize(
        "environment",
        [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    )
    def test_any_environment(self, environment: dict[str, str]) -> None:
        for arguments in ((), ("-w",), ("--by", "program", "--bars", "-t")):
            done = python(*arguments, env={**os.environ, **environment})
            assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
            assert "LC_ALL" not in environment or done.stdout.isascii()

    def test_a_reader_that_is_gone(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "tracer", "ps"]
        with subprocess.Popen(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True) as child:
            os.close(writer)
            assert (child.communicate()[1], child.returncode) == ("", 1)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
    def test_without_rights_everything_is_listed_all_the_same(self) -> None:
        code = inspect.cleandoc("""
            import os, sys
            from tracer.cli.main import main
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
            sys.argv = ["memtrace", "ps", "--json"]
            main()
        """)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        document = json.loads(done.stdout)
        mine = next(row for row in document["rows"] if row["pid"] == os.getpid())
        assert done.returncode == 0 and mine["pss"] is None and mine["rss"] > 1 << 20
        assert "no permission" in mine["unreadable"] and document["counts"]["unreadable"] >= 1

    def test_wrong_columns_are_a_usage_error_before_anything_is_read(self) -> None:
        with pytest.raises(UsageError):
            PsRun.from_options(OPTIONS | {"columns": "x"}, print, source=FakeProc())


def test_status_of_the_fakes_is_parsed_as_real() -> None:
    assert b"VmSize" in status() and b"VmSize" in Path("/proc/self/status").read_bytes()


class TestChart:
    @pytest.mark.parametrize("arguments", [[], ["--chart-kind", "pie"], ["--by", "user"], ["-w"]])
    def test_is_drawn_beside_the_rows(self, replay: Run, tmp_path: Path, arguments: list[str]) -> None:
        pytest.importorskip("matplotlib")
        chart = tmp_path / "memory.svg"
        result = replay("--chart", str(chart), *arguments)
        assert result.code == 0 and result.out
        assert chart.read_text(encoding="utf-8").startswith("<?xml") and "<svg" in chart.read_text(encoding="utf-8")

    def test_of_nothing_is_not_left_behind(self, replay: Run, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        assert replay("-P", "no such process", "--chart", str(tmp_path / "a.png")).code == 1
        assert not [*tmp_path.iterdir()]
