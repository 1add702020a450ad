"""The rich console that text forms of a report are printed on: foreign text in it is never markup."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

_PIPE_WIDTH = 80


def console_for(file: TextIO, *, width: int | None = None, colour: bool = False) -> Console:
    """A console on ``file``; without ``width`` as wide as the terminal, or 80 columns into a pipe or a file."""
    return Console(
        file=file,
        width=width or (None if file.isatty() else _PIPE_WIDTH),
        force_terminal=colour,
        color_system="auto" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
