"""Files that are no recordings, damaged ones and hostile ones: one clear line, never a traceback, nothing changed."""

from __future__ import annotations

import io
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.recordings import finished, write_recording
from tests.unit.reports import sample_report
from tracer.errors import MemtraceError, RecordingError, UsageError
from tracer.report.comparison import compare
from tracer.report.diff import DiffText, write_diff_json
from tracer.report.html import write_html
from tracer.report.json import write_json
from tracer.report.text import TextReport
from tracer.store.course import timeline_of
from tracer.store.database import open_database
from tracer.store.measure import measure
from tracer.store.part import report_of_recording
from tracer.store.recording import Recording
from tracer.store.schema import TABLES, columns_of

ROOT = Path(__file__).resolve().parents[2]


def read_all(path: Path) -> str:
    """Everything that can be done with a recording."""
    out = io.StringIO()
    with Recording(path) as recording:
        for moments in ((None, None), (2.0, 6.0)):
            report = report_of_recording(recording, *moments)
            TextReport.from_report(report, allocator_frames=True).render(out)
            write_json(report, out)
            write_html(report, out, timeline_of(recording, report))
        comparison = compare(measure(recording, "a", 0.0, 4.0), measure(recording, "b", 4.0, None))
    DiffText(comparison).render(out)
    write_diff_json(comparison, out)
    return out.getvalue()


def refusal(path: Path) -> RecordingError:
    with pytest.raises(RecordingError) as error:
        read_all(path)
    assert "\n" not in error.value.cause and str(path.name) in error.value.cause
    return error.value


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return finished(tmp_path / "good.memtrace", 10)


def test_a_good_one_is_read(good: Path) -> None:
    assert "store_attributes" in read_all(good)


# Other files.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello\n", "no recording"),
        (b"SQLite format 3\0", "no recording"),
        (b"\x7fELF" + bytes(5000), "no recording"),
        (b'{"schema": "memtrace/1"}\n', "no recording"),
    ],
)
def test_another_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    error = refusal(path)
    assert words in error.cause and error.fix and "memtrace record" in error.fix


def test_no_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none").cause
    assert "directory" in refusal(tmp_path).cause


def test_a_device_is_no_recording() -> None:
    with pytest.raises(RecordingError):
        read_all(Path("/dev/null"))


def test_another_database(tmp_path: Path) -> None:
    path = tmp_path / "browser.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE moz_places (id INTEGER)")
    database.close()
    assert "no recording" in refusal(path).cause


def change(path: Path, *statements: str) -> Path:
    database = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        database.execute(statement)
    database.close()
    return path


def test_one_of_a_later_version(good: Path) -> None:
    error = refusal(change(good, "PRAGMA user_version = 7"))
    assert "later memtrace" in error.cause and "7" in error.cause


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON looks BEGIN DELETE FROM meta; END",
        "CREATE VIEW v AS SELECT * FROM meta",
        "CREATE INDEX i ON looks (seconds)",
        "CREATE TABLE more (x)",
        "CREATE VIRTUAL TABLE f USING fts5(x)",
        "DROP TABLE report",
        "ALTER TABLE looks ADD COLUMN x",
    ],
)
def test_tables_that_are_not_ours(good: Path, statement: str) -> None:
    assert "tables are others" in refusal(change(good, statement)).cause


def test_a_view_in_the_place_of_a_table(good: Path) -> None:
    path = change(
        good, "DROP TABLE meta", "CREATE VIEW meta AS SELECT name, hex(randomblob(1000000000)) AS value FROM report"
    )
    assert "tables are others" in refusal(path).cause


def test_a_journal_that_names_other_files_is_not_used(good: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    name = os.fsencode(precious)
    tail = name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + bytes.fromhex("d9d505f920a163d7")
    header = bytes.fromhex("d9d505f920a163d7") + (0).to_bytes(4, "big") + bytes(4) + (1).to_bytes(4, "big")
    header += (512).to_bytes(4, "big") + (4096).to_bytes(4, "big")
    good.with_name("good.memtrace-journal").write_bytes(
        header + bytes(512 - len(header)) + (1).to_bytes(4, "big") + tail
    )
    try:
        read_all(good)
    except RecordingError as error:
        assert "journal" in error.cause
    assert precious.read_text() == "kept"


def test_reading_changes_nothing(good: Path, tmp_path: Path) -> None:
    before = good.read_bytes(), good.stat().st_mtime_ns
    read_all(good)
    assert (good.read_bytes(), good.stat().st_mtime_ns) == before and os.listdir(tmp_path) == ["good.memtrace"]
    with open_database(good) as database, pytest.raises(sqlite3.OperationalError):
        database.execute("DELETE FROM meta")


def test_it_is_read_without_the_tracing_side(good: Path) -> None:
    code = f"""
import sys
sys.argv = ["memtrace", "report", {str(good)!r}, "--json"]
from tracer.cli.main import main
try:
    main()
finally:
    unwanted = ("bcc", "tracer.probes", "tracer.session")
    print(*(name for name in sys.modules if name.startswith(unwanted)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_any_user_reads_what_is_theirs() -> None:
    # Not in tmp_path: its parents are closed to other users, and another test run may close them again.
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        check_that_only_the_owner_reads(finished(Path(name) / "good.memtrace", 10))


def check_that_only_the_owner_reads(good: Path) -> None:
    command = [sys.executable, "-m", "tracer", "report", str(good)]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, user=65534, group=65534, extra_groups=[]
        )

    refused = run()
    assert refused.returncode == 1 and refused.stderr.splitlines() == [
        f"memtrace: {good} cannot be read: Permission denied",
        "  it belongs to another user: read it with sudo",
    ]
    os.chown(good, 65534, 65534)
    read = run()
    assert read.returncode == 0 and read.stdout.startswith(sample_report().verdict.text[:20]), read.stderr


# Damage.


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return finished(tmp_path_factory.mktemp("image") / "a.memtrace", 10).read_bytes()


def outcome(path: Path) -> None:
    """Whatever the file holds: it is read, or refused in a line."""
    try:
        read_all(path)
    except MemtraceError as error:
        assert "\n" not in error.cause
        assert isinstance(error, RecordingError | UsageError)


@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_changed(image: bytes, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(image)
    for at in data.draw(st.lists(st.integers(0, len(image) - 1) | st.integers(0, 4096), min_size=1, max_size=8)):
        damaged[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.memtrace"
    path.write_bytes(damaged)
    outcome(path)


@given(size=st.integers(0, 1 << 20))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_was_cut_off(image: bytes, tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.memtrace"
    path.write_bytes(image[: size % len(image)])
    refusal(path)


def test_pages_that_are_mixed_up(image: bytes, tmp_path: Path) -> None:
    chance = random.Random(1)
    path = tmp_path / "a.memtrace"
    for _ in range(25):
        pages = [image[at : at + 4096] for at in range(0, len(image), 4096)]
        one, other = chance.randrange(1, len(pages)), chance.randrange(1, len(pages))
        pages[one] = pages[other]
        path.write_bytes(b"".join(pages))
        outcome(path)


EXTREME: list[Any] = [
    None, 0, -1, 1 << 62, -(1 << 63), (1 << 63) - 1, 0.5, 1e308, -1e308, float("inf"), "", "x", "[[[[1]]]]", "[]", "{}",
    "'; DROP TABLE looks; --", "x" * 100_000, "\x00\x1b[2J\u202e</script>", b"", b"\xff\xfe", b"\x00" * 70_000,
    '{"a": NaN}',
    "[" * 100_000, "[1, 2, 99999]", "[1.5]", '"1e999"', "1e999", "null", "true", '{"kind": "leak", "text": "x"}',
    "9999-12-31T23:59:59+00:00", '"9999-12-31T23:59:59+00:00"', '"0001-01-01T00:00:00"', "ffffffffffffffffff", "malloc",
]  # fmt: skip
CELLS = [(table, column) for table in TABLES for column in columns_of(table)]


@pytest.mark.parametrize(("table", "column"), CELLS, ids=[f"{table}.{column}" for table, column in CELLS])
def test_values_that_nothing_wrote(image: bytes, tmp_path: Path, table: str, column: str) -> None:
    path = tmp_path / "a.memtrace"
    for value in random.Random(f"{table}.{column}").sample(EXTREME, 7):
        path.write_bytes(image)
        database = sqlite3.connect(path, isolation_level=None)
        try:
            database.execute(f'UPDATE OR IGNORE {table} SET "{column}" = ?', (value,))
        except sqlite3.Error:
            continue
        finally:
            database.close()
        outcome(path)


def test_many_values_that_nothing_wrote(image: bytes, tmp_path: Path) -> None:
    chance = random.Random(2)
    path = tmp_path / "a.memtrace"
    for _ in range(60):
        path.write_bytes(image)
        database = sqlite3.connect(path, isolation_level=None)
        for _ in range(chance.randrange(1, 4)):
            table, column = chance.choice(CELLS)
            where = chance.choice(("", " WHERE abs(random()) % 2"))
            try:
                database.execute(f'UPDATE OR IGNORE {table} SET "{column}" = ?{where}', (chance.choice(EXTREME),))
            except sqlite3.Error:
                continue
        database.close()
        outcome(path)


def test_one_without_an_end_and_without_looks(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a.memtrace", [])
    with Recording(path) as recording:
        report = report_of_recording(recording)
    assert (report.seconds, report.growth, report.basis) == (0.0, 0, "looks")
    outcome(path)


def test_one_that_ended_before_tracing_began(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a.memtrace", [])
    assert "before tracing began" in refusal(change(path, "DELETE FROM looks")).cause
