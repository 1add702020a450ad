"""The file of a recording while it is written: one transaction for each look, in bounded space.

A rollback journal, made for each transaction and deleted at its end: between transactions the one file is all there is
(a write-ahead log would hold the latest looks in a second file). ``synchronous=NORMAL``: a machine that loses power
loses the last transactions at most; this waits for the disk, so it is done in a thread.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracer.errors import UsageError
from tracer.model.report import Frame, Report
from tracer.store.rows import Row, cell, frame_row, report_rows, to_json
from tracer.store.schema import PAGE_SIZE, SERIES, columns_of, statements

MAX_LOOKS = 1024
MAX_BYTES = 64 << 20
# Fewer looks are not worth keeping the rest for.
_FEWEST_LOOKS = 16
# What SQLite may put beside a database; one that is there already would be taken for ours.
_BESIDE = ("-journal", "-wal", "-shm")


@dataclass(slots=True)
class Changes:
    """What one look brings: rows by table, in the order of that table's columns; those of SERIES without ``look``."""

    look: Row
    meta: Mapping[str, Any] = field(default_factory=dict)
    frames: Sequence[tuple[int, Frame]] = ()
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    series: Mapping[str, Sequence[Row]] = field(default_factory=dict)


def create_file(path: Path, *, force: bool) -> None:
    """Make a new, empty file that its owner alone may read. Raises UsageError.

    Where it is made by sudo, it belongs to whoever typed that.
    """
    try:
        _make_room(path, force=force)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} exists", "choose another name, or replace it with --force") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "choose another place") from None
    # Before SQLite opens it: whoever closes a descriptor of a file loses all locks on it (fcntl(2)).
    try:
        _give_to_caller(fd)
    finally:
        os.close(fd)


def _give_to_caller(fd: int) -> None:
    os.fchmod(fd, 0o600)
    owner = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() == 0 and all(each.isascii() and each.isdigit() for each in owner):
        os.fchown(fd, int(owner[0]), int(owner[1]))


def _make_room(path: Path, *, force: bool) -> None:
    for suffix in _BESIDE:
        beside = path.with_name(path.name + suffix)
        if os.path.lexists(beside):
            raise UsageError(f"{beside} is in the way", "it belongs to another recording: remove it, or choose a name")
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise UsageError(f"{path} is a directory", "name a file")
    if not stat.S_ISREG(path.lstat().st_mode):
        raise UsageError(f"{path} is no regular file", "name one that can be replaced")
    if force:
        path.unlink()


class Writer:
    """Writes a new recording. Used by one thread at a time; every method raises sqlite3.Error where writing fails."""

    def __init__(
        self, path: Path, meta: Mapping[str, Any], *, max_looks: int = MAX_LOOKS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._max_looks = max_looks
        self._max_pages = max_bytes // PAGE_SIZE
        self._looks: list[tuple[int, int]] = []  # id in the file, number among all looks
        self._seen = 0
        self._step = 1
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        try:
            for pragma in (f"page_size = {PAGE_SIZE}", "journal_mode = DELETE", "synchronous = NORMAL"):
                self._db.execute(f"PRAGMA {pragma}")
            with self._transaction():
                for statement in statements():
                    self._db.execute(statement)
                self._put_meta(meta)
        except BaseException:
            self._db.close()
            raise

    @property
    def is_full(self) -> bool:
        """Whether the file has reached its limit, although few looks are left in it."""
        return self._pages() > self._max_pages

    def begin(self, meta: Mapping[str, Any]) -> None:
        """The window begins: what was written of an earlier one goes."""
        with self._transaction():
            for table in ("looks", *SERIES, "stacks", "frames", "vmas"):
                self._db.execute(f"DELETE FROM {table}")
            self._put_meta(meta)
        self._looks.clear()
        self._seen, self._step = 0, 1

    def add(self, changes: Changes) -> None:
        """Write a look. Earlier ones are dropped where there are too many or the file is too large."""
        with self._transaction():
            number = self._looks[-1][0] + 1 if self._looks else 1
            self._insert("looks", [(number, *changes.look)])
            self._insert("frames", (frame_row(each, frame) for each, frame in changes.frames))
            for table, rows in changes.rows.items():
                self._insert(table, rows)
            for table, rows in changes.series.items():
                self._insert(table, ((number, *row) for row in rows))
            self._put_meta(changes.meta)
            self._looks.append((number, self._seen))
            self._seen += 1
            self._thin_out()
        if self.is_full and len(self._looks) > _FEWEST_LOOKS:
            with self._transaction():
                self._halve()

    def finish(self, report: Report, frames: Mapping[Frame, int], meta: Mapping[str, Any]) -> None:
        """Write the report, whatever its size. ``frames`` are those that have been written, by their ids."""
        with self._transaction():
            known, new = dict(frames), []
            # Frames are shared by stacks: to tell them by identity is faster than by their ten fields.
            same: dict[int, int] = {}

            def ids(of: Sequence[Frame]) -> list[int]:
                for frame in of:
                    if id(frame) not in same:
                        if frame not in known:
                            known[frame] = len(known) + 1
                            new.append((known[frame], frame))
                        same[id(frame)] = known[frame]
                return [same[id(frame)] for frame in of]

            for table, rows in report_rows(report, ids).items():
                self._insert(table, rows)
            self._insert("frames", (frame_row(each, frame) for each, frame in new))
            self._put_meta(meta)

    def close(self) -> None:
        """No more is written."""
        self._db.close()

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

    def _put_meta(self, meta: Mapping[str, Any]) -> None:
        rows = [(name, cell(to_json(value))) for name, value in meta.items()]
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def _insert(self, table: str, rows: Iterable[Row]) -> None:
        marks = ", ".join("?" * len(columns_of(table)))
        self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)

    def _thin_out(self) -> None:
        """The look before this one goes, unless it is one of those to keep: looks at even distances, and the latest."""
        if len(self._looks) > 1 and self._looks[-2][1] % self._step:
            self._drop(len(self._looks) - 2)
        if len(self._looks) > self._max_looks:
            self._halve()

    def _halve(self) -> None:
        self._step *= 2
        for index in range(len(self._looks) - 2, 0, -1):
            if self._looks[index][1] % self._step:
                self._drop(index)

    def _drop(self, index: int) -> None:
        """Forget a look: what it changed has changed by the next one."""
        gone, heir = self._looks[index][0], self._looks[index + 1][0]
        for table in SERIES:
            self._db.execute(f"UPDATE OR IGNORE {table} SET look = ? WHERE look = ?", (heir, gone))
            self._db.execute(f"DELETE FROM {table} WHERE look = ?", (gone,))
        self._db.execute("DELETE FROM looks WHERE id = ?", (gone,))
        del self._looks[index]

    def _pages(self) -> int:
        used, free = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        return int(used) - int(free)


class _Transaction:
    """All of it or nothing."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
                return
            except sqlite3.Error:
                self._roll_back()
                raise
        self._roll_back()

    def _roll_back(self) -> None:
        # A full disk may have ended the transaction already.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
