"""A report's file is complete or not there at all, and nothing is replaced unasked."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from pathlib import Path
from typing import TextIO

import pytest

from tracer.cli.output import ReportFile, write_to_stdout
from tracer.errors import MemtraceError, UsageError


def render(out: TextIO) -> None:
    out.write("the report\n")


def test_written(tmp_path: Path) -> None:
    file = ReportFile(tmp_path / "out.txt", force=False)
    assert not (tmp_path / "out.txt").exists(), "nothing is there before the report is"
    file.write(render)
    file.discard()
    assert (tmp_path / "out.txt").read_text() == "the report\n"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_name_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ReportFile(Path("out.txt"), force=False).write(render)
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("force", [False, True])
def test_an_existing_file(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")
    if not force:
        with pytest.raises(UsageError, match=r"out\.txt exists") as refused:
            ReportFile(path, force=False)
        assert "--force" in str(refused.value.fix)
        assert path.read_text() == "before" and os.listdir(tmp_path) == ["out.txt"]
        return
    file = ReportFile(path, force=True)
    assert path.read_text() == "before", "until the new report is complete"
    file.write(render)
    assert path.read_text() == "the report\n"


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_is_refused(tmp_path: Path, force: bool) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        ReportFile(tmp_path, force=force)


@pytest.mark.parametrize("name", ["missing/out.txt", "file/out.txt"])
def test_a_place_that_cannot_be_written_is_refused_before_tracing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written: No"):
        ReportFile(tmp_path / name, force=False)


def test_a_report_that_was_not_made(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")
    file = ReportFile(path, force=True)
    file.discard()
    file.discard()
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["out.txt"]


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    def half(out: TextIO) -> None:
        out.write("the re")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "out.txt"
    path.write_text("before")
    file = ReportFile(path, force=True)
    with pytest.raises(MemtraceError, match="could not be written: No space left"):
        file.write(half)
    file.discard()
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["out.txt"]


def test_a_report_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(out: TextIO) -> None:
        out.write("the re")
        raise KeyError("a bug")

    file = ReportFile(tmp_path / "out.txt", force=False)
    with pytest.raises(KeyError):
        file.write(broken)
    file.discard()
    assert os.listdir(tmp_path) == []


def test_any_text_can_be_written(tmp_path: Path) -> None:
    file = ReportFile(tmp_path / "out.txt", force=False)
    file.write(lambda out: print("\udcff é", file=out))
    assert (tmp_path / "out.txt").read_bytes() == b"\\udcff \xc3\xa9\n"


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    ReportFile(tmp_path / "out.txt", force=False).write(render)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "out.txt")]
    assert modes[0] == modes[1]


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # so that opening it for writing need not wait
    try:
        ReportFile(path, force=True).write(render)
    except MemtraceError:
        pass  # refused: as good as written into it
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_file_that_appeared_while_tracing_is_not_replaced(tmp_path: Path) -> None:
    file = ReportFile(tmp_path / "out.txt", force=False)
    (tmp_path / "out.txt").write_text("another's")
    with pytest.raises(MemtraceError):
        file.write(render)
    assert (tmp_path / "out.txt").read_text() == "another's"


def test_standard_output_of_few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write_to_stdout(lambda out: print("a → b", file=out))
    assert raw.getvalue() == b"a \\u2192 b\n"


def test_standard_output_that_cannot_be_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    write_to_stdout(render)
    assert out.getvalue() == "the report\n"
