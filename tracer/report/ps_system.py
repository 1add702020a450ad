"""The whole machine's memory by area, as a table, JSON, CSV and rows for a chart."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, TextIO

from tracer.model.system import Area, SystemMemory
from tracer.report.ps import Line, Unit, bar, system_unit
from tracer.report.ps_data import SCHEMA
from tracer.report.safe import Column, Page, cells
from tracer.units import percent, short_bytes

_COLUMNS = (
    Column("AREA", keep="start"),
    Column("USED", right=True),
    Column("CACHE", right=True),
    Column("NONCACHE", right=True),
)


def system_lines(
    system: SystemMemory,
    page: Page,
    *,
    unit: Unit = "auto",
    base: int | None = None,
    header: bool = True,
    totals: bool = False,
    bars: bool = False,
) -> Iterator[Line]:
    """The areas and, indented, what is known of their inside. With ``base`` (bytes), sizes are shares of it."""
    rows: list[tuple[str, ...]] = []
    for area in system.areas:
        sizes = (area.used, area.cache, area.noncache)
        rows.append((area.name, *(system_unit(size, unit, base) for size in sizes), _bar(area.used, system, page)))
        rows += [(f"  {name}", system_unit(size, unit, base), "", "", "") for name, size in area.parts]
    summed = tuple(system_unit(_sum(system, name), unit, base) for name in ("used", "cache", "noncache"))
    rows.append(("total (MemTotal)", *summed, ""))
    columns = (*_COLUMNS, Column("OF TOTAL")) if bars else _COLUMNS
    lines = page.align(columns, [row[: len(columns)] for row in rows])
    if header:
        yield lines[0], "head"
    for row, line in zip(rows[:-1], lines[1:-1], strict=True):
        yield line, "dim" if row[0].startswith(" ") else ""
    if totals:
        yield "-" * min(max(map(cells, lines)), page.width), "dim"
        yield lines[-1], "total"
    if header:
        yield from ((line, "dim") for text in _footer(system) for line in page.wrap(text))


def _bar(used: int | None, system: SystemMemory, page: Page) -> str:
    if used is None or not system.total:
        return ""
    length = 8 if page.width < 72 else 16
    return f"{bar(max(used, 0) / system.total, length, ascii_only=page.ascii_only)} {percent(used, system.total):>6}"


def _sum(system: SystemMemory, name: str) -> int:
    """Of the areas inside of MemTotal."""
    return sum(getattr(area, name) or 0 for area in system.inside)


def _footer(system: SystemMemory) -> Iterator[str]:
    available = "not known" if system.available is None else short_bytes(system.available)
    swap = f"{short_bytes(system.swap_used)} of {short_bytes(system.swap_total)}" if system.swap_total else "none"
    yield f"available without swapping {available}; swap used {swap}"
    if any(area.used is None for area in system.outside):
        yield "N/A: only root may see it (/proc/iomem)"


def write_system_json(system: SystemMemory, time: datetime, file: TextIO) -> None:
    """Under the contract of ``memtrace ps``, with the areas as rows."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "by": "system",
        "time": time.isoformat(),
        "rows": [_json_area(area, area in system.inside) for area in system.areas],
        "totals": {name: _sum(system, name) for name in ("used", "cache", "noncache")},
        "available": system.available,
        "swap_total": system.swap_total,
        "swap_used": system.swap_used,
        "memory": system.total,
    }
    file.write(json.dumps(document, allow_nan=False) + "\n")


def _json_area(area: Area, inside: bool) -> dict[str, Any]:
    return {
        "area": area.name,
        "used": area.used,
        "cache": area.cache,
        "noncache": area.noncache,
        "in_total": inside,
        "parts": dict(area.parts),
    }


def write_system_csv(system: SystemMemory, file: TextIO, *, header: bool) -> None:
    """Area, used, cache and noncache in bytes; what is not known is empty."""
    writer = csv.writer(file, lineterminator="\n")
    if header:
        writer.writerow(["area", "used", "cache", "noncache"])
    for area in system.areas:
        sizes = (area.used, area.cache, area.noncache)
        writer.writerow([area.name, *("" if size is None else size for size in sizes)])


def system_chart_rows(system: SystemMemory) -> list[tuple[str, tuple[int, ...]]]:
    """A label and the bytes used for each area inside of MemTotal, largest first."""
    rows: list[tuple[str, tuple[int, ...]]] = [(area.name, (area.used or 0,)) for area in system.inside]
    return sorted(rows, key=lambda item: item[1], reverse=True)
