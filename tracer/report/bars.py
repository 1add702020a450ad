"""Charts in a terminal: horizontal bars, and one bar of 100 % that shows shares.

What is told by colour is told by a character as well, so that the charts say the same without colour, in ASCII, and
to people who see colours differently. They are lines of text for any width; labels are foreign text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from tracer.report.palette import GREY, colour
from tracer.report.safe import Page, cells
from tracer.units import human_bytes, percent

_EIGHTHS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"
_FILLS = "\u2588\u2593\u2592\u2591\u2584\u2580\u25a0"
_ASCII_FILLS = "#=+-:ox"
_OTHER, _ASCII_OTHER = "\u00b7", "."
_LEAST_BAR, _MOST_BAR = 8, 60
_LEAST_LABEL = 8


@dataclass(frozen=True, slots=True)
class Bar:
    """A label and its size in bytes."""

    label: str
    size: int


def bar(size: int, largest: int, width: int, *, ascii_only: bool = False) -> str:
    """A bar of at most ``width`` cells, ``size`` in proportion to ``largest``; something, however small, shows."""
    if size <= 0 or largest <= 0 or width <= 0:
        return ""
    eighths = max(1, round(min(size, largest) * width * 8 / largest))
    if ascii_only:
        return "#" * max(1, round(eighths / 8))
    return _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def bar_lines(rows: Sequence[Bar], page: Page, *, whole: int | None = None) -> list[Text]:
    """One line for each row: label, size, share of ``whole`` (where given), and the bar in what is left of the width.

    A negative size has no bar. On a page too narrow for bars there are none.
    """
    if not rows:
        return []
    sizes = [human_bytes(row.size) for row in rows]
    shares = [percent(row.size, whole) for row in rows] if whole is not None else [""] * len(rows)
    labels = [page.clean(row.label) for row in rows]
    numbers = max(map(len, sizes)) + (2 + max(map(len, shares)) if whole is not None else 0)
    widest = max(map(cells, labels))
    label_width = min(widest, max(_LEAST_LABEL, page.width - numbers - 4 - _LEAST_BAR))
    bar_width = min(_MOST_BAR, page.width - label_width - numbers - 4)
    largest = max(row.size for row in rows)
    lines = []
    for row, label, size, share in zip(rows, labels, sizes, shares, strict=True):
        shown = page.shorten(label, label_width, "both")
        text = Text(shown + " " * (label_width - cells(shown)) + "  " + size.rjust(max(map(len, sizes))))
        if whole is not None:
            text.append("  " + share.rjust(max(map(len, shares))))
        if bar_width >= _LEAST_BAR:
            text.append("  ").append(bar(row.size, largest, bar_width, ascii_only=page.ascii_only), colour(0))
        text.rstrip()
        lines.append(text)
    return lines


def share_lines(rows: Sequence[Bar], page: Page, *, top: int = 6) -> list[Text]:
    """One bar of the page's width in which each row has its share, and a legend beneath it, largest first.

    Rows beyond the first ``top``, and sizes of zero and below, are gathered as "other" and left out.
    """
    parts = _parts(rows, min(top, len(_FILLS)))
    if not parts:
        return []
    whole = sum(size for _, size, _, _ in parts)
    text = Text()
    for width, (_, _, index, style) in zip(apportion([part[1] for part in parts], page.width), parts, strict=True):
        text.append(_fill(index, page) * width, style)
    return [text, *_legend(parts, whole, page)]


_Part = tuple[str, int, int | None, str]


def _parts(rows: Sequence[Bar], top: int) -> list[_Part]:
    """Label, size, number of the fill (None: the one of "other") and colour."""
    ranked = sorted((row for row in rows if row.size > 0), key=lambda row: -row.size)
    parts: list[_Part] = [(row.label, row.size, index, colour(index)) for index, row in enumerate(ranked[:top])]
    if rest := sum(row.size for row in ranked[top:]):
        parts.append((f"other ({len(ranked) - top})", rest, None, GREY))
    return parts


def _fill(index: int | None, page: Page) -> str:
    if index is None:
        return _ASCII_OTHER if page.ascii_only else _OTHER
    return (_ASCII_FILLS if page.ascii_only else _FILLS)[index]


def _legend(parts: Sequence[_Part], whole: int, page: Page) -> list[Text]:
    """As many entries on a line as fit; on a narrow page the label gives way, not the numbers."""
    lines: list[Text] = []
    for label, size, index, style in parts:
        numbers = f" {human_bytes(size)} ({percent(size, whole)})"
        room = max(4, page.width - len(numbers) - 2)
        name = page.shorten(page.clean(label), min(room, 40), "both")
        entry = Text.assemble((_fill(index, page), style), " ", name, numbers)
        if lines and cells(lines[-1].plain) + 3 + cells(entry.plain) <= page.width:
            lines[-1].append("   ").append_text(entry)
        else:
            lines.append(entry)
    return lines


def apportion(sizes: Sequence[int], width: int) -> list[int]:
    """``width`` cells shared out in proportion, by largest remainder; they add up to ``width`` unless all sizes are 0.

    As long as there is room for it, whatever is more than 0 has a cell.
    """
    whole = sum(sizes)
    if whole <= 0 or width <= 0:
        return [0] * len(sizes)
    exact = [size * width / whole for size in sizes]
    widths = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda index: widths[index] - exact[index])
    for index in by_remainder[: width - sum(widths)]:
        widths[index] += 1
    for index, size in enumerate(sizes):
        largest = max(range(len(sizes)), key=lambda other: widths[other])
        if size > 0 and not widths[index] and widths[largest] > 1:
            widths[index] += 1
            widths[largest] -= 1
    return widths
