"""Processes as a table for people: numbers are never cut, only the last column gives way, the largest stands last.

Sizes are short (``12.3M``: K, M and G are KiB, MiB and GiB), so that seven columns fit on 80.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tracer.model.grouping import BY_PART
from tracer.model.psview import PsView
from tracer.model.usage import Row
from tracer.report.ps_columns import GIVE_WAY, PsColumn, Value
from tracer.report.safe import Column, Keep, Page, cells
from tracer.units import human_count, human_seconds, percent, plural, short_bytes

Unit = Literal["auto", "b", "k", "m", "g"]
Line = tuple[str, str]
"""Text, and the style of it: ``head``, ``total``, ``dim`` or nothing."""

_DIVISORS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
# The label of a row is to have so much room before a column of the default set gives way.
_LABEL_ROOM = 14
_KEEP_END = ("mapping", "cgroup")
_UNKNOWN = "-"
_BLOCKS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"


@dataclass(frozen=True, slots=True)
class PsStyle:
    """How to show a view: columns (``fixed``: chosen by the user, so that none gives way), units and extras.

    With ``percent``, sizes are shares of the machine's memory, those of swap of its swap space. ``bars`` is the column
    that the bars are of. ``hint`` is what to do about unreadable processes.
    """

    columns: tuple[PsColumn, ...]
    fixed: bool = False
    unit: Unit = "auto"
    percent: bool = False
    header: bool = True
    totals: bool = False
    bars: PsColumn | None = None
    hint: str = ""


def ps_lines(view: PsView, style: PsStyle, page: Page) -> Iterator[Line]:
    """The table and, with a header, what the table does not say."""
    style = _fitted(view, style, page)
    rows = [*view.rows, *([view.total] if style.totals else [])]
    lines = page.align(_layout(style), [_cells(row, view, style, page) for row in rows])
    if style.header:
        if view.seconds is not None:
            yield f"{view.time:%H:%M:%S}  growth over {human_seconds(view.seconds)}", "dim"
        yield lines[0], "head"
    for row, line in zip(view.rows, lines[1:], strict=False):
        yield line, "dim" if row.process is not None and row.process.refusal else ""
    if style.totals:
        yield "-" * max(cells(lines[0]), cells(lines[-1])), "dim"
        yield lines[-1], "total"
    if style.header:
        for text in _footer(view, style):
            yield from ((line, "dim") for line in page.wrap(page.clean(text)))


def format_value(value: Value, column: PsColumn, view: PsView, style: PsStyle) -> str:
    """One value as it is shown; what is not known is ``-``."""
    if value is None:
        return _UNKNOWN
    if isinstance(value, str):
        return value
    match column.kind:
        case "share":
            return percent(value)
        case "number":
            return str(value)
        case "size" | "swap" if style.percent:
            base = view.swap if column.kind == "swap" else view.memory
            return "N/A" if not base else f"{100 * value / base:.2f}%"
        case _:
            return _sized(value, style.unit, signed=column.kind in ("growth", "rate"))


def _sized(value: float, unit: Unit, *, signed: bool) -> str:
    if unit == "auto":
        return short_bytes(round(value), signed)
    digits = 0 if unit in ("b", "k") else 1
    return f"{value / _DIVISORS[unit]:{'+' if signed and value > 0 else ''}.{digits}f}"


def _fitted(view: PsView, style: PsStyle, page: Page) -> PsStyle:
    """Without the columns for which there is no room; of those that the user chose, all stay."""
    if style.fixed:
        return style
    for name in GIVE_WAY:
        if style.bars is not None and name == style.bars.name:
            continue
        if _width(view, style, page) + _LABEL_ROOM <= page.width:
            break
        style = replace(style, columns=tuple(column for column in style.columns if column.name != name))
    return style


def _width(view: PsView, style: PsStyle, page: Page) -> int:
    """Cells of all columns but the last, the spaces between them included."""
    table = [[column.title for column in _layout(style)]]
    table += [_cells(row, view, style, page) for row in (*view.rows, view.total)]
    return sum(max(map(cells, texts)) + 2 for texts in list(zip(*table, strict=True))[:-1])


def _layout(style: PsStyle) -> list[Column]:
    last = len(style.columns) - 1
    layout = [Column(column.title, right=column.kind != "text") for column in style.columns]
    if style.columns[last].kind == "text":
        keep: Keep = "end" if style.columns[last].name in _KEEP_END else "start"
        layout[last] = replace(layout[last], keep=keep)
    if style.bars is not None:
        layout.insert(last if style.columns[last].kind == "text" else last + 1, Column(f"OF {style.bars.title}"))
    return layout


def _cells(row: Row, view: PsView, style: PsStyle, page: Page) -> list[str]:
    values = [_cell(row, column, view, style, page) for column in style.columns]
    if style.bars is not None:
        values.insert(len(values) - (style.columns[-1].kind == "text"), _bar(row, style.bars, view, page))
    return values


def _cell(row: Row, column: PsColumn, view: PsView, style: PsStyle, page: Page) -> str:
    is_total = row is view.total
    if is_total and column.kind == "text":
        return _total_label(view) if column is style.columns[-1] else ""
    if is_total and column.name in ("pid", "share"):
        return ""
    text = page.clean(format_value(column.cell(row, view), column, view, style))
    return f">{text}" if column.is_lower_bound(row) and text != _UNKNOWN else text


def _total_label(view: PsView) -> str:
    count = len(view.rows) + view.omitted
    noun = {"process": ("process", "es"), "class": ("class", "es")}.get(view.by, (view.by, "s"))
    return plural(count, *noun)


def _bar(row: Row, column: PsColumn, view: PsView, page: Page) -> str:
    """A bar as long as its value is beside the largest one, and its share of all."""
    whole = column.cell(view.total, view)
    value = column.cell(row, view)
    if row is view.total or not isinstance(value, int | float) or not isinstance(whole, int | float):
        return ""
    values = (column.cell(other, view) for other in view.rows)
    largest = max((v for v in values if isinstance(v, int | float)), default=0)
    length = 8 if page.width < 72 else 16 if page.width < 120 else 32
    share = max(value, 0) / largest if largest > 0 else 0.0
    return f"{bar(share, length, ascii_only=page.ascii_only)} {percent(value, whole):>6}"


def bar(share: float, length: int, *, ascii_only: bool) -> str:
    """``share`` of ``length`` cells, filled; anything above zero leaves a mark."""
    if ascii_only:
        full = min(length, max(round(share * length), int(share > 0)))
        return "#" * full + "." * (length - full)
    eighths = min(8 * length, max(round(share * length * 8), int(share > 0)))
    text = _BLOCKS[8] * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")
    return text.ljust(length)


def _footer(view: PsView, style: PsStyle) -> Iterator[str]:
    survey = view.survey
    parts = [plural(len(survey.processes), "process", "es")]
    if view.omitted:
        parts[0] += f", {plural(view.omitted, 'smaller row')} not shown"
    without = [(survey.kernel_threads, "kernel thread"), (survey.zombies, "zombie")]
    counted = [plural(count, noun) for count, noun in without if count]
    if counted:
        parts.append(f"{' and '.join(counted)} without memory")
    if survey.ended:
        parts.append(f"{human_count(survey.ended)} ended meanwhile")
    new = sum(row.is_new and row.process is not None for row in view.rows)
    if new:
        parts.append(f"{human_count(new)} new since the first look, and all of it growth")
    if survey.itself:
        parts.append("memtrace itself is left out")
    yield "; ".join(parts)
    yield from _unreadable(view, style)


def _unreadable(view: PsView, style: PsStyle) -> Iterator[str]:
    unreadable = view.survey.unreadable
    if not unreadable:
        return
    rss = sum(process.sizes.rss or 0 for process in unreadable)
    text = (
        f"{plural(len(unreadable), 'process', 'es')} (RSS {short_bytes(rss)}) could not be read for want of permission"
    )
    if view.by in BY_PART or view.survey.unjudged:
        text += ": not in the table"
    elif view.by == "process":
        text += ": only RSS, VSS and swap are known" + (", and > marks sums without the rest" if style.totals else "")
    else:
        text += ", so that > stands before what is a lower bound"
    yield text + (f"; {style.hint}" if style.hint else "")


def system_unit(value: int | None, unit: Unit, base: int | None = None) -> str:
    """A size of the whole-system view: N/A where it is not known, a share where a base is given."""
    if value is None:
        return "N/A"
    return f"{100 * value / base:.2f}%" if base else _sized(value, unit, signed=False)


def legend(columns: Sequence[PsColumn]) -> Iterator[str]:
    """What each column holds, one a line."""
    width = max(len(column.name) for column in columns)
    yield from (f"{column.name:<{width}}  {column.help}" for column in columns)
