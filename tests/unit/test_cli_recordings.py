"""The commands record, report and diff: what they accept, where they write, and their exit codes."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import pytest

from tests.unit.recordings import finished, leaking, window, write_recording
from tests.unit.reports import sample_report
from tracer import target
from tracer.cli import main as main_module
from tracer.cli import tracing as tracing_module
from tracer.cli.threshold import GrowthRate
from tracer.errors import KernelError
from tracer.model.report import Report
from tracer.report.json import write_json
from tracer.report.text import TextReport
from tracer.store.recording import Recording


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""

    def command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["memtrace", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main_module.main()
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Result(end.value.code, out, err)

    return command


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Stands for the tracing itself: records three looks and makes the sample report."""
    asked: dict[str, Any] = {}
    signature = inspect.signature(tracing_module.trace)

    def trace(*arguments: Any, **named: Any) -> Any:
        asked.update(signature.bind(*arguments, **named).arguments)
        if "failure" in asked:
            raise asked["failure"]
        recorder = asked.get("recorder")
        if recorder is not None:
            recorder.begin(window())
            for each in leaking(3):
                recorder.look(each)
                recorder._waiting.join()
        return sample_report()

    monkeypatch.setattr(tracing_module, "trace", trace)
    monkeypatch.setattr(target, "check_target", lambda pid: target.TargetInfo(pid, "command", 1))
    monkeypatch.setattr(target, "check_privileges", lambda arguments: None)
    monkeypatch.chdir(tmp_path)
    return asked


def shown() -> str:
    out = io.StringIO()
    TextReport.from_report(sample_report()).render(out)
    return out.getvalue()


# record


@pytest.mark.parametrize("command", [["1234"], ["attach", "1234"], ["record", "1234"]])
@pytest.mark.parametrize("name", ["a.memtrace", "a.db"])
def test_a_file_of_this_suffix_is_a_recording(run: Run, tracing: dict[str, Any], command: list[str], name: str) -> None:
    result = run(*command, "-o", name)
    assert (result.code, result.out) == (0, shown()), "the report is on standard output"
    assert result.err.startswith(f"recorded in {name} (") and f"memtrace report {name}" in result.err
    with Recording(Path(name)) as recording:
        assert recording.report() == sample_report() and recording.origin.pid == 1234
        assert recording.origin.options["interval"] == "1.0"


def test_record_chooses_a_name(run: Run, tracing: dict[str, Any]) -> None:
    assert run("record", "1234").code == 0
    (name,) = os.listdir(".")
    assert re.fullmatch(r"memtrace-1234-\d{8}-\d{6}\.memtrace", name)


def test_record_takes_any_name(run: Run, tracing: dict[str, Any]) -> None:
    assert run("record", "1234", "-o", "before").code == 0
    assert run("record", "1234", "-o", "after", "-o", "report.json").out == ""
    assert sorted(os.listdir(".")) == ["after", "before", "report.json"]
    with Recording(Path("after")) as recording:
        assert recording.report() == sample_report()
    assert json.loads(Path("report.json").read_text())["schema"] == "memtrace/1"


def test_attach_does_not_record_unasked(run: Run, tracing: dict[str, Any]) -> None:
    assert run("1234").code == 0
    assert tracing.get("recorder") is None and os.listdir(".") == []


def test_an_existing_recording_is_refused_before_tracing(run: Run, tracing: dict[str, Any]) -> None:
    Path("a.memtrace").write_text("kept")
    result = run("record", "1234", "-o", "a.memtrace")
    assert (result.code, tracing) == (2, {})
    assert result.err == "memtrace: a.memtrace exists\n  choose another name, or replace it with --force\n"
    assert Path("a.memtrace").read_text() == "kept"
    assert run("record", "1234", "-o", "a.memtrace", "--force").code == 0


def test_two_recordings_are_refused(run: Run, tracing: dict[str, Any]) -> None:
    assert run("1234", "-o", "a.memtrace", "-o", "b.memtrace").code == 2
    assert tracing == {} and os.listdir(".") == []


def test_tracing_that_fails_leaves_no_recording(run: Run, tracing: dict[str, Any]) -> None:
    tracing["failure"] = KernelError("the kernel refuses", "do this")
    assert run("record", "1234") == Result(1, "", "memtrace: the kernel refuses\n  do this\n")
    assert os.listdir(".") == []


def test_the_page_is_that_of_the_report(run: Run, tracing: dict[str, Any]) -> None:
    assert run("record", "1234", "-o", "a.memtrace", "-o", "live.html").code == 0
    assert run("report", "a.memtrace", "-o", "later.html").code == 0
    assert Path("live.html").read_bytes() == Path("later.html").read_bytes()


# report


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return finished(tmp_path / "a.memtrace", 30)


def test_a_report_is_what_was_shown(run: Run, recorded: Path) -> None:
    assert run("report", recorded) == Result(0, shown(), "")
    out = io.StringIO()
    write_json(sample_report(), out)
    assert run("report", recorded, "--json") == Result(0, out.getvalue(), "")
    assert len(run("report", recorded, "-n", "1").out) < len(shown())
    assert "malloc" in run("report", recorded, "--allocator-frames").out


def test_a_report_in_a_file(run: Run, recorded: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.txt"
    assert run("report", recorded, "-o", file) == Result(0, "", f"wrote {file} (text: for people)\n")
    assert (tmp_path / "r.txt").read_text() == shown()
    assert run("report", recorded, "-o", tmp_path / "r.txt").code == 2
    assert run("report", recorded, "-o", tmp_path / "b.memtrace").code == 2


@pytest.mark.parametrize("form", ["folded", "folded:alloc_space", "csv", "csv:ledger", "json", "html"])
def test_every_form_is_made_of_a_recording(run: Run, recorded: Path, form: str) -> None:
    result = run("report", recorded, "--format", form)
    assert (result.code, result.err) == (0, "") and result.out and result.out != shown()
    part = run("report", recorded, "--format", form, "--from", "10")
    assert part.code == 0 and part.out and part.out != result.out


def test_several_forms_beside_a_recording(run: Run, tracing: dict[str, Any]) -> None:
    names = ["a.memtrace", "a.pb.gz", "a.folded", "a.stacks.csv"]
    outputs = [word for name in names for word in ("-o", name)]
    assert run("1234", *outputs, "-o", "-", "--json").out.startswith('{"schema"')
    assert sorted(os.listdir(".")) == sorted(names)
    again = [word for name in names[1:] for word in ("-o", f"b{name}")]
    assert run("report", "a.memtrace", *again).code == 0
    for name in names[1:]:
        assert Path(name).read_bytes() == Path(f"b{name}").read_bytes(), name


def test_what_children_add_to_the_report_is_recorded(
    run: Run, tracing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "3 child processes made in the window: not traced"
    monkeypatch.setattr(tracing_module, "trace", noting(tracing_module.trace, note))
    out = run("1234", "--children", "-o", "a.memtrace").out
    assert "3 had ended before they were found" in " ".join(out.split()) and note not in out
    assert run("report", "a.memtrace").out == out


def noting(trace: Callable[..., Report], note: str) -> Callable[..., Report]:
    """``trace``, which notes something besides."""

    def noted(*arguments: Any, **named: Any) -> Report:
        return replace(trace(*arguments, **named), notes=(note,))

    return noted


def test_part_of_it(run: Run, recorded: Path) -> None:
    out = run("report", recorded, "--from", "10", "--to", "-10s").out
    assert out.startswith("RSS grew 10.0 MiB in 10 s (1.0 MiB/s)") and "not reconciled" in out
    by_clock = run("report", recorded, "--from", "14:03:32.118", "--to", "14:03:42.118").out
    assert by_clock == out
    document = json.loads(run("report", recorded, "--from", "50%", "--json").out)
    assert document["basis"] == "looks" and document["window"]["seconds"] == 15


@pytest.mark.parametrize("moment", ["x", "25:00", "500"])
def test_a_part_that_is_not_there(run: Run, recorded: Path, moment: str) -> None:
    result = run("report", recorded, "--from", moment)
    assert (result.code, result.out) == (2, "") and len(result.err.splitlines()) == 2


def test_one_without_an_end_is_shown_with_what_it_has(run: Run, tmp_path: Path) -> None:
    result = run("report", write_recording(tmp_path / "a.memtrace", leaking(10)))
    assert result.code == 0 and "store_attributes" in result.out
    assert "a recording without an end" in " ".join(result.out.split())


def test_no_recording(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    result = run("report", tmp_path / "x")
    assert result == Result(
        1,
        "",
        f"memtrace: {tmp_path}/x is no recording of memtrace\n  recordings are made by: memtrace record PID -o FILE\n",
    )
    assert run("report", tmp_path / "none").code == 1


@pytest.mark.parametrize(
    ("limit", "code"), [("1MiB/min", 3), ("0B/s", 3), ("100MiB/s", 0), ("1.9 MiB/s", 3), ("3MiB/s", 0)]
)
def test_growth_above_a_limit(run: Run, recorded: Path, limit: str, code: int) -> None:
    result = run("report", recorded, "--fail-above", limit)
    assert (result.code, result.out) == (code, shown())
    assert bool(result.err) == bool(code)


def test_what_grows_above_the_limit_is_named(run: Run, recorded: Path) -> None:
    result = run("report", recorded, "--fail-above", "1MiB/min")
    assert result.err == "above --fail-above 1.0 MiB/min: RSS grows by 121.1 MiB/min, and 2 more\n"


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1MiB/min", (1 << 20) / 60),
        ("500KiB/h", 512_000 / 3600),
        ("10B/s", 10),
        ("2 GB / day", (2 << 30) / 86_400),
        ("5M/m", (5 << 20) / 60),
    ],
)
def test_rates(text: str, rate: float) -> None:
    assert GrowthRate().convert(text, None, None) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "1MiB", "x/min", "-1B/s", "1e5B/s", "1MiB/year", "nan/s", "9" * 99 + "B/s"])
def test_no_rates(text: str) -> None:
    with pytest.raises(click.BadParameter):
        GrowthRate().convert(text, None, None)


def test_names_that_are_known_now(run: Run, recorded: Path, tmp_path: Path) -> None:
    empty = tmp_path / "debug"
    empty.mkdir()
    assert run("report", recorded, "--debug-dir", empty) == Result(0, shown(), "")
    assert run("report", recorded, "--debug-dir", tmp_path / "none").code == 2


# diff


def test_diff(run: Run, recorded: Path, tmp_path: Path) -> None:
    fixed = write_recording(tmp_path / "b.memtrace", leaking(20, leak=0))
    before = write_recording(tmp_path / "c.memtrace", leaking(30))
    out = run("diff", before, fixed)
    assert (out.code, out.err) == (0, "")
    line = next(line for line in out.out.splitlines() if line.startswith(" #1"))
    assert "gone" in line and "store_attributes" in out.out
    assert json.loads(run("diff", before, fixed, "--json").out)["schema"] == "memtrace-diff/1"
    assert run("diff", before, fixed, "--fail-above", "10MiB/min").code == 0
    assert run("diff", fixed, before, "--fail-above", "10MiB/min").code == 3
    assert run("diff", before, fixed, "-o", tmp_path / "d.txt") == Result(0, "", "")
    assert (tmp_path / "d.txt").read_text() == out.out
    assert run("diff", before, fixed, "-o", tmp_path / "d.txt").code == 2


def test_diff_of_one_compares_its_halves(run: Run, tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a.memtrace", leaking(30))
    halves = run("diff", path)
    assert halves.code == 0 and "cache_insert" in halves.out
    assert halves.out == run("diff", path, path, "--a-to", "15", "--b-from", "15").out
    assert run("diff", path, "--a-to", "10", "--b-from", "20").out != halves.out


def test_diff_refuses_what_is_no_recording(run: Run, recorded: Path, tmp_path: Path) -> None:
    assert run("diff", recorded, tmp_path / "none").code == 1
    assert run("diff", recorded, recorded, "--a-from", "500").code == 2
    assert run("diff").code == 2


@pytest.mark.parametrize("command", ["record", "report", "diff"])
def test_help_fits_a_terminal(run: Run, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run(command, "--help")
    assert result.code == 0 and "Exit status" in result.out
    assert [line for line in result.out.splitlines() if len(line) > 80] == []
    assert f"memtrace {command} " in run("--help").out
