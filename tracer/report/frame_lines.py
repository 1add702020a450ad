"""The lines of a stack in the report for people: frames, innermost first, with the one to look at marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from tracer.model.report import Frame, StackGrowth
from tracer.report.frames import culprit, frame_name, without_allocator
from tracer.report.safe import Page, cells

_INDENT = "        "
_MARK = "      > "


@dataclass(frozen=True, slots=True)
class _Row:
    """One line: ``times`` frames in a row that look the same."""

    name: str
    place: str
    times: int
    is_culprit: bool


def frame_lines(stack: StackGrowth, page: Page, limit: int, *, allocator_frames: bool) -> Iterator[Text]:
    """At most ``limit`` lines of frames, and the culprit in any case; what is left out is counted.

    Recursion is one line, and one frame too many is shown rather than counted.
    """
    rows = _rows(stack.frames if allocator_frames else without_allocator(stack.frames), page)
    shown = rows if len(rows) <= limit + 1 else rows[:limit]
    for row in shown:
        yield _line(row, page)
    rest = rows[len(shown) :]
    marked = next((i for i, row in enumerate(rest) if row.is_culprit), None)
    if marked is not None:
        yield from _hidden(rest[:marked])
        yield _line(rest[marked], page)
        rest = rest[marked + 1 :]
    yield from _hidden(rest)
    if not stack.complete:
        yield Text(f"{_INDENT}(stack ends early)", style="yellow")


def _rows(frames: tuple[Frame, ...], page: Page) -> list[_Row]:
    first = culprit(frames)
    labels = [(*_label(frame, page), index == first) for index, frame in enumerate(frames)]
    runs = [[*run] for _, run in groupby(labels, key=lambda label: label[:2])]
    return [_Row(run[0][0], run[0][1], len(run), any(marked for _, _, marked in run)) for run in runs]


def _hidden(rows: list[_Row]) -> Iterator[Text]:
    if rows:
        yield Text(f"{_INDENT}... {sum(row.times for row in rows)} more", style="dim")


def _line(row: _Row, page: Page) -> Text:
    name = row.name + (f" [{row.times} times]" if row.times > 1 else "")
    room = page.width - len(_INDENT)
    where = page.shorten(page.clean(row.place), max(room // 2, room - 2 - cells(page.clean(name))), "end")
    # The ends of a C++ name tell most: its namespace and its method.
    what = page.shorten(page.clean(name), room - (2 + cells(where) if where else 0), "both")
    place = ("  " + where, "dim") if where else ""
    return Text.assemble(_MARK if row.is_culprit else _INDENT, (what, "bold" if row.is_culprit else ""), place)


def _label(frame: Frame, page: Page) -> tuple[str, str]:
    """Name and place of a frame."""
    name = frame_name(frame, page.ellipsis)
    module = (frame.module or "").rpartition("/")[2]
    if frame.function is None:
        return name, "" if module else "(no module)"
    inlined = " [inlined]" if frame.inlined else ""
    if frame.file:
        path = "/".join(frame.file.split("/")[-2:])
        return name + inlined, path if frame.line is None else f"{path}:{frame.line}"
    offset = "" if frame.inlined or not frame.function_offset else f"+{frame.function_offset:#x}"
    return name + offset + inlined, f"({module})" if module else ""
