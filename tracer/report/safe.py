"""Foreign text on a terminal: nothing in it may act, and nothing may leave its column.

Symbols, paths and command lines come from other people's binaries. They pass :func:`printable` before they are
shown, and are shortened, aligned and wrapped by what a terminal shows of them (cells), not by their length.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Keep = Literal["start", "end", "both"]

# A number and its unit stay on one line: "1.9 MiB", "30 s", "0.7 %".
_NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=(?:[KMGTPE]i)?B\b|ms\b|s\b|min\b|h\b|d\b|%)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_BREAK = "\N{NO-BREAK SPACE}"


def printable(text: str, ascii_only: bool = False) -> str:
    """``text`` with whatever is not a visible character replaced by its escape (``\\x1b``, ``\\n``, ``\\u202e``).

    That covers control characters, bidirectional overrides, line separators, and bytes that were no UTF-8 and
    became surrogates (PEP 383). ``ascii_only`` also escapes what an ASCII terminal cannot show.
    """
    if text.isprintable() and (not ascii_only or text.isascii()):
        return text
    return "".join(c if c.isprintable() and (not ascii_only or c.isascii()) else escape(c) for c in text)


def escape(character: str) -> str:
    """A character as Python would write it; a surrogate that stands for a byte (PEP 383) as that byte."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def valid_unicode(text: str) -> str:
    """``text`` without surrogates, which are no Unicode: those that ``os.fsdecode`` makes become ``\\xff``."""
    return text if text.isascii() else _SURROGATE.sub(lambda match: escape(match[0]), text)


def cells(text: str) -> int:
    """Columns that ``text`` takes on a terminal: two for wide characters, none for combining ones."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, width: int) -> str:
    """The longest start of ``text`` that takes at most ``width`` cells."""
    taken = 0
    for i, character in enumerate(text):
        taken += _cells_of(character)
        if taken > width:
            return text[:i]
    return text


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Without ``keep`` it is never cut; with it, it may be, down to ``least`` cells."""

    title: str
    right: bool = False
    keep: Keep | None = None
    least: int = 8


@dataclass(frozen=True, slots=True)
class Page:
    """What text is set on: ``width`` cells, and whether only ASCII can be shown."""

    width: int
    ascii_only: bool = False

    @property
    def ellipsis(self) -> str:
        """Stands where something was cut off."""
        return "..." if self.ascii_only else "\N{HORIZONTAL ELLIPSIS}"

    def clean(self, text: str) -> str:
        """Foreign text, safe to show on this page."""
        return printable(text, self.ascii_only)

    def shorten(self, text: str, width: int, keep: Keep = "start") -> str:
        """``text`` in at most ``width`` cells; ``keep`` says which part of it tells most."""
        if cells(text) <= width:
            return text
        room = width - len(self.ellipsis)
        if room < 1:
            return _cut(text, max(width, 0))
        if keep == "start":
            return _cut(text, room) + self.ellipsis
        tail = room if keep == "end" else room // 2
        end = _cut(text[::-1], tail)[::-1]
        return (_cut(text, room - tail) if keep == "both" else "") + self.ellipsis + end

    def align(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> list[str]:
        """The titles and the rows as lines; if too wide, columns with ``keep`` give way, the last one first."""
        table = [[column.title for column in columns], *rows]
        widths = [max(map(cells, texts)) for texts in zip(*table, strict=True)]
        excess = sum(widths) + 2 * (len(columns) - 1) - self.width
        for i, column in reversed([*enumerate(columns)]):
            if column.keep and excess > 0:
                narrowed = max(min(widths[i], column.least), widths[i] - excess)
                excess -= widths[i] - narrowed
                widths[i] = narrowed
        return [self._line(columns, widths, row) for row in table]

    def _line(self, columns: Sequence[Column], widths: Sequence[int], row: Sequence[str]) -> str:
        parts = []
        for column, width, text in zip(columns, widths, row, strict=True):
            fitted = self.shorten(text, width, column.keep) if column.keep else text
            padding = " " * (width - cells(fitted))
            parts.append(padding + fitted if column.right else fitted + padding)
        return "  ".join(parts).rstrip()

    def wrap(self, text: str, first: str = "", rest: str | None = None) -> list[str]:
        """Prose in lines: ``first`` stands before the first, ``rest`` (or as many blanks) before the others."""
        glued = _NUMBER_AND_UNIT.sub(_NO_BREAK, text)
        hanging = " " * len(first) if rest is None else rest
        lines = textwrap.wrap(
            glued, self.width, initial_indent=first, subsequent_indent=hanging, break_on_hyphens=False
        )
        return [line.replace(_NO_BREAK, " ") for line in lines]
