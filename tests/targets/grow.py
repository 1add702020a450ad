"""A Python program that grows: a table of rows that is only ever added to. It speaks the protocol of target.h.

Usage: grow.py [ROWS [RATE]]; each `g` appends ROWS rows (default 5000). With RATE (rows per second) it also grows by
itself, at no more than that rate, from ready on. The truth counts rows and what sys.getsizeof says of them, which is
less than what the allocators took.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time

Table = dict[int, list[str]]

TICK = 0.05


def append_row(table: Table) -> int:
    """Adds one row and returns its size in bytes, without the table's own."""
    row = [f"row {len(table)} column {column} ".ljust(80, ".") for column in range(4)]
    table[len(table)] = row
    return sys.getsizeof(row) + sum(sys.getsizeof(text) for text in row)


def grow_table(table: Table, rows: int) -> int:
    """Adds rows and returns their size in bytes."""
    return sum(append_row(table) for _ in range(rows))


def rss_pages() -> dict[str, int]:
    with open("/proc/self/status", "rb") as status:
        fields = dict(line.split(b":", 1) for line in status)
    return {
        kind: int(fields[field].split()[0]) * 1024 // os.sysconf("SC_PAGE_SIZE")
        for kind, field in (("anon", b"RssAnon"), ("file", b"RssFile"), ("shmem", b"RssShmem"))
    }


def send(answer: dict[str, object]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def truth(phase: int, table: Table, size: int) -> dict[str, object]:
    rows = len(table)
    tally = {
        "kind": "python",
        "bytes": size,
        "count": rows,
        "allocated_bytes": size,
        "allocated_count": rows,
        "freed_bytes": 0,
        "freed_count": 0,
    }
    return {"phase": phase, "stacks": {"append_row": tally}, "rss_pages": rss_pages()}


def serve(rows: int, rate: float) -> None:
    table: Table = {}
    size = phase = own_rows = 0
    json.dumps(truth(0, table, 0))
    send({"ready": True, "pid": os.getpid(), "rss_pages": rss_pages()})
    began = time.monotonic()
    while True:
        if rate:
            is_asked = bool(select.select([0], [], [], TICK)[0])
            due = int((time.monotonic() - began) * rate) - own_rows
            size += grow_table(table, due)
            own_rows += due
            if not is_asked:
                continue
        command = os.read(0, 1)
        if command in (b"", b"q"):
            return
        if command == b"g":
            phase += 1
            size += grow_table(table, rows)
            send(truth(phase, table, size))
        elif command not in (b"\n", b" "):
            send({"error": f"unknown command {command[0]}"})


if __name__ == "__main__":
    arguments = sys.argv[1:]
    serve(int(arguments[0]) if arguments else 5000, float(arguments[1]) if len(arguments) > 1 else 0.0)
