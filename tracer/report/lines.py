"""Styled lines on a terminal or in a file; rich is only imported where there is a terminal to colour."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from typing import TextIO

from tracer.report.safe import Page

_STYLES: Mapping[str, str] = {"head": "bold", "total": "bold", "dim": "dim", "good": "green", "bad": "bold red"}
# Wide enough for any line: what is piped goes to a program, or to a pager that scrolls.
_UNCUT = 1 << 20
_PIPE_WIDTH = 80


def page_for(file: TextIO, *, cut_in_pipe: bool) -> Page:
    """As wide as the terminal; in a pipe or file 80 columns, or, unless ``cut_in_pipe``, as wide as each line needs."""
    width = shutil.get_terminal_size().columns if file.isatty() else _PIPE_WIDTH if cut_in_pipe else _UNCUT
    encoding = (file.encoding or "ascii").lower()
    return Page(width, ascii_only=not encoding.startswith("utf"))


def write_lines(lines: Iterable[tuple[str, str]], file: TextIO) -> None:
    """Write (text, style) pairs; NO_COLOR and TERM=dumb are heeded. The text must be safe to show already."""
    if not file.isatty():
        file.writelines(f"{text}\n" for text, _ in lines)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, highlight=False, markup=False, emoji=False)
    for text, style in lines:
        console.print(Text(text, style=_STYLES.get(style, "")), soft_wrap=True)
