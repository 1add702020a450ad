"""Rows of a recording's tables <-> the report's dataclasses.

A field that has no column goes into the column ``more``, so that what is added to the report later is kept as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from tracer.model.report import ClassGrowth, Frame, LedgerRow, Report, StackGrowth, VmaGrowth
from tracer.model.vma import Vma
from tracer.store.codec import DecodeError, decode, encode
from tracer.store.schema import columns_of

Cell = int | float | str | bytes | None
Row = tuple[Cell, ...]

# Addresses and the like: all 64 bits are used. SQLite's integers are signed.
_UNSIGNED = frozenset({"start", "end", "offset", "function_offset", "address", "inode"})
_U64 = 1 << 64
_MAX_I64 = (1 << 63) - 1
_MAX_FRAMES = 4096
_VMA_FIELDS = tuple(field.name for field in fields(Vma))
# The parts of a report that have tables of their own.
IN_TABLES = ("classes", "vmas", "stacks", "ledger")


def cell(value: Any) -> Cell:
    """A value as SQLite can hold it: text that is no Unicode as a blob, integers as signed ones."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    if isinstance(value, int) and value > _MAX_I64:
        return value - _U64
    result: Cell = value
    return result


def to_json(value: Any) -> str:
    """Compact JSON of plain values; what is no Unicode is escaped."""
    return json.dumps(value, separators=(",", ":"))


def from_json(value: Any) -> Any:
    """What a cell that should hold JSON holds. Raises DecodeError."""
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        raise DecodeError("no JSON") from None


def row_of(table: str, values: dict[str, Any]) -> Row:
    """A row of ``table``; what has no column there goes into ``more``."""
    *names, last = columns_of(table)
    if last != "more":
        return tuple(cell(values.get(name)) for name in (*names, last))
    row = [cell(values.pop(name, None)) for name in names]
    return (*row, to_json(encode(values)) if values else None)


def values_of(table: str, row: Sequence[Cell]) -> dict[str, Any]:
    """The values of a row by name. Raises DecodeError."""
    values: dict[str, Any] = {}
    for (name, kind), value in zip(columns_of(table).items(), row, strict=True):
        if isinstance(value, bytes) and kind == "TEXT":
            values[name] = _text(value)
        elif name in _UNSIGNED and isinstance(value, int) and value < 0:
            values[name] = value + _U64
        else:
            values[name] = value
    more = values.pop("more", None)
    if more is not None:
        known = from_json(more)
        if not isinstance(known, dict):
            raise DecodeError("no JSON object")
        values = {**known, **values}
    return values


def frame_row(number: int, frame: Frame) -> Row:
    """A row of ``frames``."""
    return row_of("frames", {"id": number, **_shallow(frame)})


def frame_of(values: dict[str, Any]) -> Frame:
    """The frame of a row's values. Raises DecodeError."""
    frame: Frame = decode(Frame, values)
    return frame


def report_rows(report: Report, frame_ids: Callable[[Sequence[Frame]], list[int]]) -> dict[str, Iterator[Row]]:
    """The rows of all tables that hold a report, by table, made as they are taken."""
    return {
        "report": (
            row_of("report", {"name": field.name, "value": to_json(encode(getattr(report, field.name)))})
            for field in fields(report)
            if field.name not in IN_TABLES
        ),
        "report_classes": (_ranked("report_classes", rank, _shallow(row)) for rank, row in enumerate(report.classes)),
        "report_vmas": (_ranked("report_vmas", rank, _vma(row)) for rank, row in enumerate(report.vmas)),
        "report_stacks": (
            _ranked("report_stacks", rank, {**_shallow(row), "frames": to_json(frame_ids(row.frames))})
            for rank, row in enumerate(report.stacks)
        ),
        "report_ledger": (_ranked("report_ledger", rank, _shallow(row)) for rank, row in enumerate(report.ledger)),
    }


def report_of(tables: Mapping[str, Sequence[Sequence[Cell]]], frames_of: Callable[[Any], tuple[Frame, ...]]) -> Report:
    """The report that these rows hold; ``frames_of`` turns a JSON array of ids into frames. Raises DecodeError."""
    parts = {}
    for row in tables["report"]:
        values = values_of("report", row)
        parts[values["name"]] = from_json(values["value"])
    parts["classes"] = parts["vmas"] = parts["stacks"] = parts["ledger"] = []
    report: Report = decode(Report, parts)
    rows = {name: [values_of(name, row) for row in tables[name]] for name in tables if name != "report"}
    return replace(
        report,
        classes=tuple(decode(ClassGrowth, values) for values in rows["report_classes"]),
        vmas=tuple(_vma_of(values) for values in rows["report_vmas"]),
        stacks=tuple(_stack_of(values, frames_of) for values in rows["report_stacks"]),
        ledger=tuple(decode(LedgerRow, values) for values in rows["report_ledger"]),
    )


def ids_in(value: Any) -> list[int]:
    """A JSON array of ids, as ``stacks`` and ``report_stacks`` hold it. Raises DecodeError."""
    ids = from_json(value)
    if not isinstance(ids, list) or len(ids) > _MAX_FRAMES or not all(type(each) is int for each in ids):
        raise DecodeError("no array of frames")
    return ids


def vma_values(vma: Vma) -> dict[str, Any]:
    """A VMA's fields; the path stays bytes."""
    return {name: getattr(vma, name) for name in _VMA_FIELDS}


def vma_of(values: dict[str, Any]) -> Vma:
    """The VMA that these values hold. Raises DecodeError."""
    vma: Vma = decode(Vma, values)
    if vma.end < vma.start:
        raise DecodeError("a VMA that ends before it begins")
    return vma


def _ranked(table: str, rank: int, values: dict[str, Any]) -> Row:
    return row_of(table, {"rank": rank, **values})


def _shallow(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _vma(row: VmaGrowth) -> dict[str, Any]:
    values = _shallow(row)
    return {**vma_values(values.pop("vma")), **values}


def _vma_of(values: dict[str, Any]) -> VmaGrowth:
    vma = vma_of({name: values.pop(name) for name in _VMA_FIELDS if name in values})
    growth: VmaGrowth = decode(VmaGrowth, {**values, "vma": encode(vma)})
    return growth


def _stack_of(values: dict[str, Any], frames_of: Callable[[Any], tuple[Frame, ...]]) -> StackGrowth:
    frames = frames_of(values["frames"])
    stack: StackGrowth = decode(StackGrowth, {**values, "frames": []})
    return replace(stack, frames=frames)


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise DecodeError("no text") from None
