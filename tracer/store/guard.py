"""A process of our own that sets the file right where memtrace is killed in the middle of a transaction.

Then part of the file is new and part old, and what was old stands in the journal beside it. SQLite would use that when
the file is opened for writing the next time; but the one file may be taken to another machine before. So a child waits
for memtrace's end and, where a journal was left, has SQLite use it at once.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from tracer.detached import leave_the_terminal

_NAME = b"mt-recording"
_DONE = b"."


class Guard:
    """Watches over the recording at ``path``. To be made before the process has threads, as it forks."""

    def __init__(self, path: Path) -> None:
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._child = os.fork()
        if self._child == 0:
            os.close(self._writer)
            _watch(reader, path.absolute())
        os.close(reader)

    def close(self) -> None:
        """The file is in order and closed: returns when the child has gone. Safe to call twice."""
        if self._writer < 0:
            return
        with contextlib.suppress(OSError):
            os.write(self._writer, _DONE)
        os.close(self._writer)
        self._writer = -1
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._child, 0)


def _watch(reader: int, path: Path) -> None:
    """The child. Never returns."""
    try:
        leave_the_terminal(_NAME)
        if os.read(reader, 1) != _DONE:
            roll_back(path)
    finally:
        os._exit(0)


def roll_back(path: Path) -> None:
    """Where a transaction was cut off, undo it: SQLite does, when it locks a database that it may write."""
    journal = path.with_name(path.name + "-journal")
    if not journal.exists():
        return
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=10.0)) as db:
        db.execute("BEGIN EXCLUSIVE")
        # What is there now is a journal that was not even begun: it says nothing, and SQLite leaves it.
        journal.unlink(missing_ok=True)
