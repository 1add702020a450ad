"""A report's tables as CSV (RFC 4180, lines end with a newline): one line of titles, sizes in bytes, times in seconds.

Spreadsheets take a cell that begins with ``=`` and the like for a formula. No text from outside may become one: such a
cell begins with an apostrophe, which spreadsheets take for "this is text".
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TextIO, get_args

from tracer.model.report import Report, StackGrowth
from tracer.report.frames import culprit
from tracer.report.safe import printable
from tracer.report.samples import name_of

Table = Literal["stacks", "classes", "vmas", "ledger"]
TABLES: tuple[Table, ...] = get_args(Table)
DEFAULT_TABLE: Table = "stacks"

_Cell = str | int | float
_Rows = Iterator[Sequence[_Cell]]

# Full-width forms count: some spreadsheets take them for the plain ones.
_FORMULA = tuple(
    "=+-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)
_BETWEEN_FRAMES = " < "


def write_csv(report: Report, file: TextIO, table: Table = DEFAULT_TABLE) -> None:
    """Write one table of the report."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows(_TABLES[table](report))


def inert(text: str) -> str:
    """Text from outside as one line that no spreadsheet takes for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def _stacks(report: Report) -> _Rows:
    yield (
        "id",
        "kind",
        "class",
        "bytes",
        "count",
        "bytes_error",
        "allocated_bytes",
        "allocated_count",
        "freed_bytes",
        "freed_count",
        "rate",
        "oldest",
        "trend",
        "complete",
        "culprit",
        "frames",
    )
    for stack in report.stacks:
        yield (
            stack.id,
            stack.kind,
            inert(stack.vma_class),
            stack.bytes,
            stack.count,
            stack.bytes_error,
            stack.allocated_bytes,
            stack.allocated_count,
            stack.freed_bytes,
            stack.freed_count,
            round(stack.rate, 3),
            round(stack.oldest, 3),
            stack.trend,
            int(stack.complete),
            inert(_culprit(stack)),
            inert(_BETWEEN_FRAMES.join(name_of(frame) for frame in stack.frames)),
        )


def _culprit(stack: StackGrowth) -> str:
    index = culprit(stack.frames)
    return "" if index is None else name_of(stack.frames[index])


def _classes(report: Report) -> _Rows:
    yield "class", "rss_start", "rss_end", "growth", "size_growth"
    for row in report.classes:
        yield inert(row.name), row.rss_start, row.rss_end, row.growth, row.size_growth


def _vmas(report: Report) -> _Rows:
    yield "start", "end", "size", "perms", "offset", "inode", "class", "rss", "growth", "gone", "path"
    for row in report.vmas:
        vma = row.vma
        yield (
            f"{vma.start:x}",
            f"{vma.end:x}",
            vma.size,
            vma.perms,
            vma.offset,
            vma.inode,
            inert(row.vma_class),
            row.rss,
            row.growth,
            int(row.gone),
            inert(vma.path.decode("utf-8", "backslashreplace")),
        )


def _ledger(report: Report) -> _Rows:
    yield "class", "cause", "stack", "bytes"
    for row in report.ledger:
        yield inert(row.vma_class), row.cause, row.stack or "", row.bytes


_TABLES: dict[Table, Callable[[Report], _Rows]] = {
    "stacks": _stacks,
    "classes": _classes,
    "vmas": _vmas,
    "ledger": _ledger,
}
