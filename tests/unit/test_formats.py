from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.reports import sample_report
from tracer.cli.report_options import Outputs, ReportOptions
from tracer.errors import MemtraceError, UsageError
from tracer.report import folded, formats, samples, tables
from tracer.report.formats import FORMATS, format_of_file, parse_format

TYPED = ReportOptions(top=10, allocator_frames=False, format_name=None, as_json=False, output=(), force=False)
REPORT = sample_report()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("out.json", ("json", None)),
        ("out.pb.gz", ("pprof", None)),
        ("OUT.PPROF", ("pprof", None)),
        ("out.folded", ("folded", None)),
        ("out.alloc_space.folded", ("folded", "alloc_space")),
        ("out.csv", ("csv", None)),
        ("ledger.csv", ("csv", "ledger")),
        ("out.vmas.csv", ("csv", "vmas")),
        ("out.nonsense.csv", ("csv", None)),
        ("out.txt", ("text", None)),
        ("out", ("text", None)),
        ("json", ("text", None)),
        ("out.gz", ("text", None)),
    ],
)
def test_a_files_name_tells_its_format(name: str, expected: tuple[str, str | None]) -> None:
    choice = format_of_file(name)
    assert (choice.format.name, choice.part) == expected


def test_formats_as_typed() -> None:
    assert parse_format("csv:vmas").part == "vmas" and parse_format("pprof").format.binary
    for text, fix in (
        ("svg", "json"),
        ("csv:nonsense", "csv:ledger"),
        ("csv:", "csv:ledger"),
        ("json:x", "write: json"),
    ):
        with pytest.raises(UsageError) as refused:
            parse_format(text)
        assert fix in (refused.value.fix or "")


def test_the_list_of_parts_is_that_of_the_writers() -> None:
    assert set(formats._TABLES) == set(tables.TABLES) and set(formats._METRICS) == set(samples.METRICS)
    assert formats._TABLES[0] == tables.DEFAULT_TABLE and formats._METRICS[0] == samples.DEFAULT_METRIC


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "text"])
def test_every_format_and_part_can_be_written(name: str) -> None:
    form = FORMATS[name]
    for part in (None, *form.parts):
        file: Any = io.BytesIO() if form.binary else io.StringIO()
        formats.Choice(form, part).write(REPORT, file)
        assert file.getvalue()


def test_a_metric_of_folded_stacks() -> None:
    file, expected = io.StringIO(), io.StringIO()
    parse_format("folded:alloc_objects").write(REPORT, file)
    folded.write_folded(REPORT, expected, "alloc_objects")
    assert file.getvalue() == expected.getvalue()


class Standard(io.TextIOWrapper):
    """Standard output, of which it can be chosen whether it is a terminal."""

    terminal = False

    def isatty(self) -> bool:
        return self.terminal

    @property
    def written(self) -> bytes:
        self.flush()
        return cast(io.BytesIO, self.buffer).getvalue()


@pytest.fixture
def stdout() -> Standard:
    return Standard(io.BytesIO(), encoding="utf-8")


Write = Callable[..., list[str]]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdout: Standard) -> Write:
    """Writes the report as these options say, in an empty directory; returns what was said."""
    monkeypatch.chdir(tmp_path)

    def write(*names: str, **changes: Any) -> list[str]:
        said: list[str] = []
        options = replace(TYPED, output=tuple(map(Path, names)), **changes)
        with redirect_stdout(stdout), Outputs(options, said.append) as outputs:
            outputs.write(REPORT)
        return said

    return write


def test_text_goes_to_standard_output(write: Write, stdout: Standard) -> None:
    assert write() == []
    assert stdout.written.startswith(b"RSS grew") and os.listdir() == []


def test_one_trace_in_many_forms(write: Write, stdout: Standard) -> None:
    names = ["a.json", "a.pb.gz", "a.folded", "a.ledger.csv", "a.txt"]
    assert [line.split()[1] for line in write(*names)] == names
    assert sorted(os.listdir()) == sorted(names) and stdout.written == b""
    assert json.loads(Path("a.json").read_text())["schema"] == "memtrace/1"
    assert Path("a.pb.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert Path("a.ledger.csv").read_text().startswith("class,cause,stack,bytes\n")
    assert Path("a.txt").read_text().startswith("RSS grew")


def test_files_and_standard_output(write: Write, stdout: Standard) -> None:
    write("a.json", "b.csv", "-")
    assert stdout.written.startswith(b"RSS grew")
    write("c.csv", "-", as_json=True)
    assert json.loads(stdout.written.splitlines()[-1])["schema"] == "memtrace/1"
    assert Path("c.csv").read_text().startswith("id,")


def test_format_overrides_the_suffix(write: Write, stdout: Standard) -> None:
    write("a.txt", as_json=True)
    write("b.json", format_name="csv:vmas")
    assert Path("a.txt").read_text().startswith("{") and Path("b.json").read_text().startswith("start,")


def test_bytes_to_a_pipe(write: Write, stdout: Standard) -> None:
    write(format_name="pprof")
    assert stdout.written[:2] == b"\x1f\x8b"


def test_bytes_to_a_terminal_are_refused(write: Write, stdout: Standard) -> None:
    stdout.terminal = True
    for names in ((), ("-",), ("a.json", "-")):
        with pytest.raises(UsageError, match="pprof is binary"):
            write(*names, format_name="pprof")
    write("a.pb.gz")
    assert os.listdir() == ["a.pb.gz"]


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        (("a.json", "b.json"), {"format_name": "csv"}),
        (("a.json", "./a.json"), {}),
        ((), {"as_json": True, "format_name": "csv"}),
        ((), {"format_name": "svg"}),
        (("a.json", "missing/b.json"), {}),
    ],
)
def test_what_cannot_be_is_refused_before_there_is_a_report(
    write: Write, stdout: Standard, names: tuple[str, ...], changes: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        write(*names, **changes)
    assert os.listdir() == [] and stdout.written == b""


def test_a_file_that_fails_costs_no_other(stdout: Standard, tmp_path: Path) -> None:
    options = replace(TYPED, output=(tmp_path / "a.pb.gz", tmp_path / "b.json"))
    with redirect_stdout(stdout), Outputs(options, lambda line: None) as outputs:
        (tmp_path / "a.pb.gz").write_text("another's, come into being meanwhile")
        with pytest.raises(MemtraceError, match=r"a\.pb\.gz"):
            outputs.write(REPORT)
    assert (tmp_path / "b.json").read_text().startswith("{")
    assert stdout.written.startswith(b"RSS grew"), "what could not be written is shown, and bytes as text"
    assert (tmp_path / "a.pb.gz").read_text().startswith("another's")


def test_nothing_is_left_of_a_report_that_was_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Outputs(replace(TYPED, output=(Path("a.pb.gz"), Path("b.json"))), lambda line: None):
        assert len(os.listdir()) == 2
    assert os.listdir() == []
