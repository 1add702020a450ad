"""Opens the database of a recording, whoever made it: nothing in it is run, and nothing beside it is changed.

What is opened must be a database with our tables and nothing else (no view, trigger, index or virtual table), it is
opened for reading only, and its pages must be in order.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from tracer.errors import RecordingError
from tracer.store.schema import APPLICATION_ID, TABLES, VERSION

_MAGIC = b"SQLite format 3\0"
_HEADER = 100
# SQLite's file format, 1.3: offsets of the versions for writing and reading (1: rollback journal), user version, id.
_WRITE_VERSION, _READ_VERSION, _USER_VERSION, _APPLICATION_ID = 18, 19, 60, 68
# Ends a journal that names other files, which SQLite would open and delete (pager.c, aJournalMagic).
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_MAX_FILE = 4 << 30
_MAX_CELL = 64 << 20
_BUSY_SECONDS = 10.0


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong while a recording is read, in one line. Raises RecordingError."""
    try:
        yield
    except (sqlite3.Error, ValueError, OverflowError, RecursionError) as error:
        raise RecordingError(f"{path} is damaged: {error}", _keep_together(path)) from None


@contextmanager
def open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """A checked database, in one read transaction. Raises RecordingError."""
    _check_header(path)
    with tempfile.TemporaryDirectory(prefix="memtrace-") as scratch, ExitStack() as stack:
        with reading(path):
            database = stack.enter_context(closing(_connect(path, Path(scratch))))
            _check_contents(path, database)
        yield database


def _check_header(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if not os.path.isfile(path):
                raise RecordingError(f"{path} is no file", "name a recording, as memtrace record writes them")
            header, size = file.read(_HEADER), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}", _fix_of(error)) from None
    if not header.startswith(_MAGIC) or _number(header, _APPLICATION_ID) != APPLICATION_ID:
        what = "is empty" if not header else "is no recording of memtrace"
        raise RecordingError(f"{path} {what}", "recordings are made by: memtrace record PID -o FILE")
    version = _number(header, _USER_VERSION)
    if version > VERSION:
        raise RecordingError(
            f"{path} was made by a later memtrace (format {version}, this one reads up to {VERSION})",
            "read it with that version",
        )
    if header[_WRITE_VERSION] != 1 or header[_READ_VERSION] != 1 or not version or size > _MAX_FILE:
        raise RecordingError(f"{path} is no recording as memtrace writes them", None)


def _number(header: bytes, offset: int) -> int:
    return int.from_bytes(header[offset : offset + 4], "big")


def _fix_of(error: OSError) -> str | None:
    return "it belongs to another user: read it with sudo" if isinstance(error, PermissionError) else None


def _keep_together(path: Path) -> str:
    return f"where there is a file {path.name}-journal beside the original, copy both"


def _connect(path: Path, scratch: Path) -> sqlite3.Connection:
    """The database at ``path``; one whose last transaction was cut off is read from a copy, where that is undone."""
    try:
        return _opened(path, "mode=ro")
    except sqlite3.OperationalError:
        journal = path.with_name(path.name + "-journal")
        if not journal.is_file():
            # A file system without locks, or one that is mounted for reading only.
            return _opened(path, "mode=ro&immutable=1")
        copy = scratch / "recording"
        try:
            shutil.copyfile(path, copy)
            shutil.copyfile(journal, scratch / "recording-journal")
        except OSError as error:
            raise RecordingError(f"{path} cannot be read: {error.strerror}") from None
        if (scratch / "recording-journal").read_bytes().endswith(_JOURNAL_MAGIC):
            raise RecordingError(f"{journal} is no journal of a recording", "remove it") from None
        return _opened(copy, "mode=rw")


def _opened(path: Path, how: str) -> sqlite3.Connection:
    database = sqlite3.connect(
        f"file:{quote(os.fsencode(path.absolute()))}?{how}", uri=True, isolation_level=None, timeout=_BUSY_SECONDS
    )
    try:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_CELL)
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON", "mmap_size = 0"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("BEGIN")
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        database.close()
        raise
    return database


def _check_contents(path: Path, database: sqlite3.Connection) -> None:
    found = {(kind, name, sql) for kind, name, sql in database.execute("SELECT type, name, sql FROM sqlite_master")}
    if found != {("table", name, f"CREATE TABLE {name} {columns}") for name, columns in TABLES.items()}:
        raise RecordingError(f"{path} is no recording of memtrace: its tables are others")
    verdict = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict is None or verdict[0] != "ok":
        raise RecordingError(f"{path} is damaged", _keep_together(path))
