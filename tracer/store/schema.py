"""The format of a recording: a SQLite database, version 1.

It is known by ``PRAGMA application_id`` = 0x6D74726B ("mtrk") and ``PRAGMA user_version`` = 1, the version of this
schema: a reader refuses a later one, and adds what a later version added to an earlier file. Sizes are in bytes, times
in seconds. A 64-bit address or offset that does not fit into SQLite's signed integers is stored less 2^64. Text that is
no Unicode (the kernel's names may be any bytes) is stored as a blob: UTF-8 with lone surrogates encoded alike.

While the session goes on, one transaction for each interval adds what has changed:

``meta``         name -> JSON. host, kernel, arch, page_size, memtrace (version), pid, options: from the start.
                 command, started (ISO 8601): once the window has begun, again after an exec. probed, notes, losses,
                 sampling, rss_source: as of the latest look. dropped: looks that were left out as writing could not
                 keep up. lean: seconds from which on stacks are missing, as the file had reached its limit. ended: what
                 ended the session.
``looks``        Looks at the process, in order: ``seconds`` since the window began, RSS by member, the sum of live
                 allocations, memtrace's own CPU seconds and RSS, ``counters`` as JSON (since the window began). Looks
                 are dropped at even distances when there are more than 1024; the latest is always there.
``stack_looks``  What a stack held and had taken and given back at a look; a row only where it is not as at the look
                 before, so that the latest row up to a look holds.
``class_looks``  Resident bytes and size of each class of memory, in the same way; ``seconds`` is when the VMAs were
                 read, which is not at every look.
``vma_looks``    End and resident bytes of VMAs in the same way; both 0 where it is no longer mapped. At most the 4096
                 largest are kept.
``stacks``       ``stack`` is the stack's id in hexadecimal, ``frames`` a JSON array of ids of ``frames``, innermost
                 first (null: not read yet). ``complete``: the walk reached to where the thread began.
``frames``       ``module`` and ``offset`` are what ``addr2line -e MODULE OFFSET`` takes, ``build_id`` says of which
                 file: enough to resolve a frame again with better symbols.
``vmas``         A VMA by its start, permissions and file; ``class`` is the latest.

At the end, in one transaction:

``report``       The report as the session printed it: name of a part -> JSON. It is empty where the session was killed,
                 or its disk full.
``report_classes``, ``report_vmas``, ``report_stacks``, ``report_ledger``
                 Its tables, in its order (``rank``); the columns mean what the JSON contract memtrace/1 says.

A column ``more`` is a JSON object of what later versions of memtrace know besides, or null.

The largest stacks of a finished recording, for instance:

    SELECT bytes, (SELECT group_concat(function, ' < ') FROM json_each(s.frames) JOIN frames f ON f.id = value)
    FROM report_stacks s ORDER BY bytes DESC LIMIT 10;
"""

from __future__ import annotations

from functools import cache

APPLICATION_ID = 0x6D74726B
VERSION = 1
PAGE_SIZE = 4096

# Table -> what follows its name in CREATE TABLE. A reader accepts a file only if it holds these and nothing else.
TABLES = {
    "meta": "(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
    "looks": "(id INTEGER PRIMARY KEY, seconds REAL, anon INTEGER, file INTEGER, shmem INTEGER, swap INTEGER,"
    " live_bytes INTEGER, live_count INTEGER, self_cpu REAL, self_rss INTEGER, counters TEXT)",
    "stack_looks": "(look INTEGER, stack INTEGER, bytes INTEGER, count INTEGER, allocated_bytes INTEGER,"
    " allocated_count INTEGER, freed_bytes INTEGER, freed_count INTEGER, PRIMARY KEY (look, stack)) WITHOUT ROWID",
    "class_looks": "(look INTEGER, class TEXT, rss INTEGER, size INTEGER, seconds REAL, PRIMARY KEY (look, class))"
    " WITHOUT ROWID",
    "vma_looks": "(look INTEGER, vma INTEGER, end INTEGER, rss INTEGER, PRIMARY KEY (look, vma)) WITHOUT ROWID",
    "stacks": "(id INTEGER PRIMARY KEY, stack TEXT, kind TEXT, complete INTEGER, frames TEXT)",
    "frames": "(id INTEGER PRIMARY KEY, function TEXT, module TEXT, offset INTEGER, function_offset INTEGER,"
    " build_id TEXT, file TEXT, line INTEGER, inlined INTEGER, language TEXT, address INTEGER, more TEXT)",
    "vmas": "(id INTEGER PRIMARY KEY, start INTEGER, perms TEXT, offset INTEGER, device TEXT, inode INTEGER,"
    " path BLOB, class TEXT)",
    "report": "(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
    "report_classes": "(rank INTEGER PRIMARY KEY, name TEXT, rss_start INTEGER, rss_end INTEGER, size_growth INTEGER,"
    " more TEXT)",
    "report_vmas": "(rank INTEGER PRIMARY KEY, start INTEGER, end INTEGER, perms TEXT, offset INTEGER, device TEXT,"
    " inode INTEGER, path BLOB, vma_class TEXT, rss INTEGER, growth INTEGER, gone INTEGER, more TEXT)",
    "report_stacks": "(rank INTEGER PRIMARY KEY, id TEXT, kind TEXT, bytes INTEGER, count INTEGER,"
    " allocated_bytes INTEGER, freed_bytes INTEGER, allocated_count INTEGER, freed_count INTEGER, rate REAL,"
    " oldest REAL, vma_class TEXT, complete INTEGER, frames TEXT, trend TEXT, bytes_error INTEGER, survival REAL,"
    " unverified_bytes INTEGER, more TEXT)",
    "report_ledger": "(rank INTEGER PRIMARY KEY, vma_class TEXT, cause TEXT, stack TEXT, bytes INTEGER, more TEXT)",
}
# What depends on a look.
SERIES = ("stack_looks", "class_looks", "vma_looks")


def statements() -> list[str]:
    """What makes an empty recording of a new database."""
    tables = [f"CREATE TABLE {name} {columns}" for name, columns in TABLES.items()]
    return [f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {VERSION}", *tables]


@cache
def columns_of(table: str) -> dict[str, str]:
    """The names of a table's columns, in order, and their types."""
    inner = TABLES[table][1 : TABLES[table].rindex(")")].split(", PRIMARY KEY")[0]
    words = [column.split() for column in inner.split(",")]
    return {column[0]: column[1] for column in words}
