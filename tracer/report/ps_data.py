"""Processes as data: JSON under the contract ``memtrace-ps/1``, CSV, and rows for a chart. All sizes in bytes.

What is not known is null in JSON and empty in CSV. Rows stand in the order of the table.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from tracer.model.psview import PsView
from tracer.model.usage import Row, Sizes
from tracer.report.ps_columns import PsColumn
from tracer.report.safe import escape, printable

SCHEMA = "memtrace-ps/1"


def write_ps_json(view: PsView, file: TextIO) -> None:
    """Write the view as one line, so that repeated looks are JSON lines."""
    file.write(json.dumps(ps_json(view), allow_nan=False) + "\n")


def ps_json(view: PsView) -> dict[str, Any]:
    """The view as what ``json.dumps`` takes."""
    survey = view.survey
    return {
        "schema": SCHEMA,
        "by": view.by,
        "time": view.time.isoformat(),
        "seconds": view.seconds,
        "rows": [_row(row, view) for row in view.rows],
        "totals": _amounts(view.total, view),
        "not_shown": view.omitted,
        "counts": {
            "processes": len(survey.processes),
            "unreadable": len(survey.unreadable),
            "kernel_threads": survey.kernel_threads,
            "zombies": survey.zombies,
            "ended": survey.ended,
        },
        "unreadable": [
            {"pid": process.pid, "reason": text(process.refusal or "")} for process in view.survey.unreadable
        ],
        "memory": view.memory,
        "swap": view.swap,
    }


def _row(row: Row, view: PsView) -> dict[str, Any]:
    if row.process is None:
        return {view.by: text(row.label), "pids": row.pids, "unreadable": row.unreadable, **_amounts(row, view)}
    process = row.process
    return {
        "pid": process.pid,
        "user": text(process.user),
        "uid": process.uid,
        "name": text(process.name),
        "command": text(process.command),
        "program": text(process.program) or None,
        "cgroup": text(process.cgroup) or None,
        "unreadable": None if process.refusal is None else text(process.refusal),
        **_amounts(row, view),
    }


def _amounts(row: Row, view: PsView) -> dict[str, Any]:
    found: dict[str, Any] = {"maps": row.maps, "threads": row.threads, **asdict(row.sizes)}
    if row.partial:
        found["at_least"] = sorted(row.partial)
    if row.growth is not None:
        found["growth"] = asdict(row.growth)
        found["rate"] = _rates(row.growth, view)
        found["new"] = row.is_new
    return found


def _rates(growth: Sizes, view: PsView) -> dict[str, float | None]:
    rates = {name: view.rate(value) for name, value in asdict(growth).items()}
    return {name: rate if rate is None else round(rate, 1) for name, rate in rates.items()}


def write_ps_csv(view: PsView, columns: Sequence[PsColumn], file: TextIO, *, header: bool, totals: bool) -> None:
    """The columns as comma-separated values, sizes in bytes and shares from 0 to 1; control characters are escaped."""
    writer = csv.writer(file, lineterminator="\n")
    if header:
        writer.writerow([column.name for column in columns])
    for row in view.rows:
        writer.writerow([_field(row, column, view) for column in columns])
    if totals:
        cells = [_field(view.total, column, view) if column.kind != "text" else "" for column in columns]
        writer.writerow([*cells[:-1], "total" if columns[-1].kind == "text" else cells[-1]])


def _field(row: Row, column: PsColumn, view: PsView) -> str | int | float:
    value = column.cell(row, view)
    if value is None:
        return ""
    if isinstance(value, float):
        return round(value, 6)
    return printable(value) if isinstance(value, str) else value


def chart_rows(view: PsView, columns: Sequence[PsColumn]) -> list[tuple[str, tuple[int, ...]]]:
    """A label and the values of ``columns`` for each row, largest first, for a chart; what is not known counts as 0.

    A process is labelled by its name and pid, as command lines are long. The labels are safe to show anywhere.
    """
    rows = []
    for row in view.rows:
        label = f"{row.process.name} ({row.process.pid})" if row.process is not None else row.label
        values = (column.cell(row, view) for column in columns)
        rows.append((printable(label), tuple(round(v) if isinstance(v, int | float) else 0 for v in values)))
    return sorted(rows, key=lambda item: item[1], reverse=True)


def text(value: str) -> str:
    """``value`` as valid Unicode: a byte that was no UTF-8 (a surrogate, PEP 383) as ``\\xff``."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "".join(escape(c) if "\ud800" <= c <= "\udfff" else c for c in value)
    return value
