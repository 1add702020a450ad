"""Kinds of arguments of ``memtrace maps``: processes, sizes, ranges, regular expressions."""

from __future__ import annotations

import re
from typing import Any

import click


class ProcessParam(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """A process id, or its directory in /proc."""

    name = "pid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The id; one that no process can have is left to be found missing."""
        text = str(value).removeprefix("/proc/").removesuffix("/")
        if not text.isascii() or not text.isdigit() or len(text) > 18 or not int(text):
            self.fail(f"{str(value)!r} is no process id: give a number such as 1234", param, ctx)
        return int(text)


class ParsedParam(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A value that a function of text makes; its ValueError is the user's."""

    def __init__(self, name: str, function: str) -> None:
        """``function`` is one of ``tracer.maps.selection``, which is not imported before it is needed."""
        self.name = name
        self._function = function

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What the function makes of the text."""
        from tracer.maps import selection

        if not isinstance(value, str):
            return value
        try:
            return getattr(selection, self._function)(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class RegexParam(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A regular expression."""

    name = "regex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> re.Pattern[str]:
        """The compiled expression."""
        try:
            return re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            self.fail(f"{value!r} is no regular expression: {error}", param, ctx)
