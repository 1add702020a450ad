"""The command line: what it accepts, how it refuses, and which exit code it ends with. Nothing is traced here."""

from __future__ import annotations

import inspect
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from tests.unit.reports import sample_report
from tracer import __version__, target
from tracer.cli import main as main_module
from tracer.cli import tracing as tracing_module
from tracer.cli.attach import attach
from tracer.errors import KernelError, PrivilegeError, TargetError, UsageError
from tracer.options import Options

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 1 << 22  # one more than the highest pid there can be (include/linux/threads.h)
HEAVY = ("bcc", "rich", "capstone", "numpy", "matplotlib", "tracer.session", "tracer.watch", "tracer.report.live")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""

    def command(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["memtrace", *arguments])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as end:
            main_module.main()
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Result(end.value.code, out, err)

    return command


@dataclass
class Tracing:
    """Stands for the tracing itself: keeps what was asked for, and makes the sample report or raises ``failure``."""

    asked: dict[str, Any]
    failure: BaseException | None = None
    before: Callable[[], None] = lambda: None


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> Tracing:
    tracing = Tracing({})
    signature = inspect.signature(tracing_module.trace)

    def trace(*arguments: Any, **named: Any) -> Any:
        tracing.asked = dict(signature.bind(*arguments, **named).arguments)
        tracing.before()
        if tracing.failure:
            raise tracing.failure
        return sample_report()

    monkeypatch.setattr(tracing_module, "trace", trace)
    monkeypatch.setattr(target, "check_target", lambda pid: target.TargetInfo(pid, "command", 1))
    monkeypatch.setattr(target, "check_privileges", lambda arguments: None)
    return tracing


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("Usage: memtrace") and len(lines) < 40
    assert "memtrace PID" in result.out


def test_help_fits_a_terminal(run: Run) -> None:
    assert [line for line in run("--help").out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("arguments", [["attach", "--help"], ["attach", "-h"], ["1234", "--help"]])
def test_help_of_attach(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 0 and result.out.startswith("Usage: memtrace attach")
    for parameter in attach.params:
        assert parameter.name == "pid" or parameter.opts[-1] in result.out


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(run: Run, option: str) -> None:
    assert run(option) == Result(0, f"memtrace {__version__}\n", "")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_nothing_heavy_is_imported_for_what_needs_it_not(option: str) -> None:
    code = f"""
import sys
sys.argv = ["memtrace", {option!r}]
from tracer.cli.main import main
try:
    main()
finally:
    print(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
"""
    result = python(code)
    assert (result.returncode, result.stderr) == (0, "\n")


def test_the_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "tracer", "-V"], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"memtrace {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["1234", "-d", "5"],
        ["-d", "5", "1234"],
        ["--duration", "5", "1234"],
        ["--duration=5", "1234"],
        ["attach", "1234", "-d", "5"],
        ["attach", "-d", "5", "1234"],
        ["-d5", "--", "1234"],
    ],
)
def test_the_pid_and_options_in_any_order(run: Run, tracing: Tracing, arguments: list[str]) -> None:
    assert run(*arguments).code == 0
    assert (tracing.asked["target"].pid, tracing.asked["options"].duration) == (1234, 5.0)


def test_defaults(run: Run, tracing: Tracing) -> None:
    assert run("1234").code == 0
    asked = tracing.asked
    assert asked["options"] == Options(sample_bytes=16 << 10, max_overhead=0.05)


def test_options_are_passed_on(run: Run, tracing: Tracing) -> None:
    assert run("1234", "-i", "0.5", "--max-live", "2048").code == 0
    assert (tracing.asked["options"].interval, tracing.asked["options"].max_live) == (0.5, 2048)


@pytest.mark.parametrize(("text", "share"), [("2.5", 0.025), ("10%", 0.1), ("none", None), ("100", 1.0)])
def test_the_budget_is_a_percentage(run: Run, tracing: Tracing, text: str, share: float | None) -> None:
    assert run("1234", "--max-overhead", text, "--sample-bytes", "1").code == 0
    options = tracing.asked["options"]
    assert (options.max_overhead, options.sample_bytes) == (share, 1)


@pytest.mark.parametrize("text", ["0", "-1", "101", "nan", "x"])
def test_what_is_no_budget(run: Run, tracing: Tracing, text: str) -> None:
    result = run("1234", "--max-overhead", text)
    assert (result.code, tracing.asked) == (2, {}) and "max-overhead" in result.err


def test_the_report_goes_to_standard_output(run: Run, tracing: Tracing) -> None:
    result = run("1234")
    assert result.code == 0 and result.err == "" and sample_report().verdict.text[:20] in result.out
    assert "\x1b" not in result.out, "no colour where there is no terminal"


def test_the_number_of_stacks(run: Run, tracing: Tracing) -> None:
    all_of_them, one = run("1234"), run("1234", "-n", "1")
    assert len(one.out) < len(all_of_them.out)


def test_json(run: Run, tracing: Tracing) -> None:
    assert json.loads(run("1234", "--json").out)["schema"] == "memtrace/1"


def test_a_report_in_a_file(run: Run, tracing: Tracing, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    there: list[bool] = []
    tracing.before = lambda: there.append(path.exists())
    assert run("1234", "--json", "-o", str(path)) == Result(0, "", f"wrote {path} (json: schema memtrace/1)\n")
    assert json.loads(path.read_text())["schema"] == "memtrace/1"
    assert os.listdir(tmp_path) == ["out.json"] and there == [False]


def test_an_existing_file_is_refused_before_tracing(run: Run, tracing: Tracing, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    result = run("1234", "-o", str(path))
    assert (result.code, result.out, tracing.asked) == (2, "", {})
    assert result.err.splitlines() == [
        f"memtrace: {path} exists",
        "  choose another name, or replace it with --force",
    ]
    assert run("1234", "-o", str(path), "--force").code == 0 and path.read_text() != "before"


def test_tracing_that_fails_leaves_no_file(run: Run, tracing: Tracing, tmp_path: Path) -> None:
    tracing.failure = KernelError("the kernel refuses", "do this")
    assert run("1234", "-o", str(tmp_path / "out")) == Result(1, "", "memtrace: the kernel refuses\n  do this\n")
    assert os.listdir(tmp_path) == []


def test_a_report_that_finds_no_place_goes_to_standard_output(run: Run, tracing: Tracing, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()

    def disappear() -> None:
        for entry in place.iterdir():
            entry.unlink()
        place.rmdir()

    tracing.before = disappear
    result = run("1234", "--json", "-o", str(place / "out"))
    assert result.code == 1 and json.loads(result.out)["schema"] == "memtrace/1"
    assert result.err.splitlines()[0].startswith("memtrace: ") and "could not be written" in result.err


def test_signals_are_as_before(run: Run, tracing: Tracing) -> None:
    before = signal.getsignal(signal.SIGTERM)
    tracing.before = lambda: signal.raise_signal(signal.SIGTERM)
    assert run("1234").code == 0, "the report is made all the same"
    assert tracing.asked["signals"].requested() == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bogus", "1234"], "--bogus"),
        (["1234", "--bogus"], "--bogus"),
        (["attach", "1234", "--bogus"], "--bogus"),
        (["1234", "5678"], "5678"),
        (["-d", "5"], "PID"),
        (["attach"], "PID"),
        (["1234", "-d"], "-d"),
        (["1234", "-d", "0"], "duration"),
        (["1234", "-d", "-1"], "duration"),
        (["1234", "-i", "0.05"], "interval"),
        (["1234", "-n", "0"], "top"),
        (["1234", "--max-live", "1"], "max-live"),
        (["1234", "--sample-bytes", "0"], "sample-bytes"),
        (["1234", "--force=yes"], "force"),
        (["frobnicate"], "frobnicate"),
        (["attach", "x"], "x"),
        (["0"], "0"),
        (["-1"], "-1"),
        (["1.5"], "1.5"),
        (["0x10"], "0x10"),
        (["१२"], "१२"),
        ([str((1 << 22) + 1)], "4194305"),
        (["9" * 30], "999"),
        ([""], "''"),
        (["\x1b[31m"], "["),
    ],
)
def test_usage_errors(run: Run, tracing: Tracing, arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out, tracing.asked) == (2, "", {})
    cause, fix = result.err.splitlines()
    assert cause.startswith("memtrace: ") and words in cause
    assert fix in ("  see: memtrace attach --help", "  see: memtrace --help")
    assert "\x1b" not in result.err


@pytest.mark.parametrize("option", ["--duration", "--interval", "--top", "--max-live"])
def test_a_value_that_is_no_number_is_told_with_its_option(run: Run, tracing: Tracing, option: str) -> None:
    result = run("1234", option, "abc")
    assert result.code == 2 and "abc" in result.err
    assert option in result.err.splitlines()[0]


@pytest.mark.parametrize("option", ["--duration", "--interval"])
def test_times_are_numbers(run: Run, tracing: Tracing, option: str) -> None:
    assert run("1234", option, "nan").code == 2


def test_a_process_that_does_not_exist(run: Run) -> None:
    result = run(str(NOBODY))
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[0] == f"memtrace: there is no process {NOBODY}"
    assert len(result.err.splitlines()) == 2


def test_itself(run: Run) -> None:
    assert run(str(os.getpid())) == Result(1, "", "memtrace: memtrace cannot trace itself\n")


def test_without_the_rights_the_command_to_type_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "check_target", lambda pid: target.TargetInfo(pid, "command", 1))
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "Name:\tx\nCapEff:\t0000000000000000\n")
    result = run("1234", "-o", "a b")
    assert result == Result(
        1, "", "memtrace: tracing needs root (CAP_SYS_ADMIN)\n  type: sudo memtrace 1234 -o 'a b'\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (TargetError("it has ended"), 1, "memtrace: it has ended\n"),
        (PrivilegeError("no", "type: x"), 1, "memtrace: no\n  type: x\n"),
        (UsageError("cannot be", "do that"), 2, "memtrace: cannot be\n  do that\n"),
        (KernelError("a\nb\x1b[0m", "c\rd"), 1, None),
        (click.Abort(), 1, ""),
        (click.exceptions.Exit(3), 3, ""),
        (click.ClickException("what click says"), 1, "memtrace: what click says\n"),
        (KeyboardInterrupt(), 1, "memtrace: interrupted before there was anything to report\n"),
        (ZeroDivisionError("by zero"), 1, None),
    ],
)
def test_how_it_ends(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, err: str | None
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.delenv("MEMTRACE_DEBUG", raising=False)
    monkeypatch.setattr(main_module, "cli", SimpleNamespace(main=fail))
    result = run("1234")
    assert (result.code, result.out) == (code, "")
    assert "Traceback" not in result.err and "\x1b" not in result.err
    if err is not None:
        assert result.err == err
    else:
        assert len(result.err.splitlines()) == 2, "a cause and a fix, whatever they hold"


def test_a_bug_is_told_with_its_name_or_shown(run: Run, monkeypatch: pytest.MonkeyPatch, tracing: Tracing) -> None:
    tracing.failure = ZeroDivisionError("by zero")
    monkeypatch.delenv("MEMTRACE_DEBUG", raising=False)
    result = run("1234")
    assert result.code == 1 and "ZeroDivisionError: by zero" in result.err and "MEMTRACE_DEBUG=1" in result.err
    monkeypatch.setenv("MEMTRACE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("1234")


def test_a_terminal_that_is_gone(run: Run, monkeypatch: pytest.MonkeyPatch, tracing: Tracing) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(5, "Input/output error")

    tracing.failure = TargetError("it has ended")
    monkeypatch.setattr(sys, "argv", ["memtrace", "1234"])
    monkeypatch.setattr(sys, "stderr", Gone())
    with pytest.raises(SystemExit) as end:
        main_module.main()
    assert end.value.code == 1


def test_html_is_chosen_by_the_suffix(run: Run, tracing: Tracing, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert run("1234", "-o", str(page)).code == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


REPORTING = """
import sys
from tests.unit.reports import sample_report
from tracer import target
from tracer.cli import main, tracing
target.check_target = lambda pid: target.TargetInfo(pid, "command", 1)
target.check_privileges = lambda arguments: None
tracing.trace = lambda *arguments, **named: sample_report()
sys.argv = ["memtrace", "1234"]
main.main()
"""


@pytest.mark.parametrize("command", [["-m", "tracer", "--help"], ["-c", REPORTING]], ids=["help", "report"])
def test_a_reader_that_is_gone(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writer)
        _, err = process.communicate()
    assert (process.returncode, err) == (1, "")
