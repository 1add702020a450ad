"""Mappings as JSON under the contract ``memtrace-maps/1``, and as CSV; every size in bytes.

Names are fixed; later versions may add more. Text is always valid Unicode, as in ``memtrace/1``. A field of smaps has
its name in lower case.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TextIO

from tracer.maps.columns import DERIVED, Column, find_column, other_columns, size_columns
from tracer.maps.process import ProcessMaps, totals
from tracer.maps.read import Unreadable
from tracer.maps.selection import Group
from tracer.model.coded import Coded
from tracer.procfs.vma_table import Attributes
from tracer.procfs.vmflags import meaning
from tracer.report.safe import printable
from tracer.report.safe import valid_unicode as _text

SCHEMA: Final = "memtrace-maps/1"

# A process with the key that its VMAs are grouped by, if they are, and the groups.
Shown = tuple[ProcessMaps, str | None, Sequence[Group]]


def write_json(shown: Iterable[Shown], unreadable: Sequence[Unreadable], file: TextIO, *, flags: bool = False) -> None:
    """Write one line of JSON; ``flags`` spells out the codes of VmFlags. ``unreadable`` may grow meanwhile."""
    file.write(f'{{"schema": "{SCHEMA}", "processes": [')
    for index, (process, key, found) in enumerate(shown):
        file.write(", " if index else "")
        _write_process(process, key, found, file, flags=flags)
    rows = [{"pid": row.pid, "why": row.why, "text": _text(row.text)} for row in unreadable]
    file.write(f'], "unreadable": {json.dumps(rows)}}}\n')


def write_csv(
    processes: Iterable[ProcessMaps], names: Sequence[str] | None, file: TextIO, *, header: bool = True
) -> None:
    """Write a line of titles and a line for each VMA; the columns of these names, or those of ``csv_columns``.

    All processes have the columns of the first. Raises UsageError for a column that its smaps does not have.
    """
    writer = csv.writer(file, lineterminator="\n")
    columns: list[Column] = []
    for process in processes:
        if not columns:
            columns = csv_columns(process) if names is None else [find_column(name, process) for name in names]
            writer.writerows([[column.name for column in columns]] if header else [])
        cells = [_csv_texts(process, column) for column in columns]
        writer.writerows(zip(*cells, strict=True))


def csv_columns(process: ProcessMaps) -> list[Column]:
    """Everything: where the VMA is, what it is, each field of smaps, and the sums of some."""
    first = ("pid", "address", "end", "perms", "offset", "device", "inode", "path", "class", "threads", "size")
    derived = [find_column(name) for name in DERIVED] if process.reader == "smaps" else []
    return [
        *map(find_column, first),
        *size_columns(process),
        *other_columns(process),
        *derived,
        *([find_column("vmflags")] if process.reader == "smaps" else []),
    ]


def _csv_texts(process: ProcessMaps, column: Column) -> Iterator[str]:
    cells = column.cells(process)
    if column.kind == "hex":
        return iter(cells.map(lambda cell: f"{cell:x}"))
    return iter(cells.map(lambda cell: "" if cell is None else printable(str(cell))))


def _write_process(process: ProcessMaps, key: str | None, found: Sequence[Group], file: TextIO, *, flags: bool) -> None:
    head = {
        "pid": process.pid,
        "command": _text(process.command),
        "user": _text(process.user),
        "source": process.reader,
        "torn": process.torn,
        "vma_count": process.vma_count,
        "notes": [_text(note) for note in process.notes],
        "totals": _totals(process),
        "rollup": _lower(process.rollup),
    }
    if key is not None:
        head["by"] = key
        head["groups"] = [{"name": _text(group.name), **_totals(group.process)} for group in found]
    file.write(json.dumps(head)[:-1] + ', "vmas": [')
    file.write(", ".join(_vmas(process, flags=flags)))
    file.write("]}")


def _totals(process: ProcessMaps) -> dict[str, Any]:
    """Sums by field; shares of pages are smaps_rollup's, if it is of the same moment; ``rounded`` has their sums."""
    sums = totals(process)
    derived = {name: find_column(name).total(process, sums) for name in DERIVED}
    return {
        "vmas": len(process.table),
        **_lower({name: size for name, size in sums.exact.items() if name != "Size"}),
        **{name: size for name, size in derived.items() if size is not None},
        "size": sums.size,
        "rounded": _lower(sums.rounded),
    }


def _lower(sizes: Any) -> Any:
    return None if sizes is None else {name.lower(): size for name, size in sizes.items()}


def _vmas(process: ProcessMaps, *, flags: bool) -> Iterator[str]:
    """One JSON object for each VMA, put together from parts that are encoded once for all VMAs that share them."""
    table = process.table
    parts = [
        table.attributes.map(_attributes),
        process.classes.map(lambda name: json.dumps({"class": name})[1:-1]),
        _fields(process),
        table.flags.map(lambda codes: _flags(codes, spelled=flags)),
    ]
    threads = process.threads
    for start, end, *texts in zip(table.starts, table.ends, *parts, strict=True):
        owners = json.dumps([{"tid": row.tid, "name": _text(row.name)} for row in threads.get(start, ())])
        body = ", ".join([text for text in texts if text])
        yield f'{{"start": "{start:x}", "end": "{end:x}", "size": {end - start}, {body}, "threads": {owners}}}'


def _attributes(attributes: Attributes) -> str:
    fields = {
        "perms": _text(attributes.perms),
        "offset": attributes.offset,
        "device": _text(attributes.device),
        "inode": attributes.inode,
        "path": attributes.path.decode("utf-8", "backslashreplace"),
    }
    return json.dumps(fields)[1:-1]


def _fields(process: ProcessMaps) -> Coded[str]:
    """The fields of smaps and their sums, as the inner part of an object."""
    columns = [*size_columns(process), *other_columns(process)]
    if process.reader == "smaps":
        columns += [find_column(name) for name in DERIVED]
    cells = [column.cells(process).values for column in columns]
    if not cells:
        return Coded(process.table.blocks, [""] * (max(process.table.blocks, default=0) + 1))
    names = [column.name for column in columns]
    rows = (dict(zip(names, values, strict=True)) for values in zip(*cells, strict=True))
    return Coded(process.table.blocks, [json.dumps(row)[1:-1] for row in rows])


def _flags(codes: Sequence[str], *, spelled: bool) -> str:
    fields: dict[str, list[str]] = {"vmflags": [_text(code) for code in codes]}
    if spelled:
        fields["vmflags_text"] = [meaning(code) for code in codes]
    return json.dumps(fields)[1:-1]
