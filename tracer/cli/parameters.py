"""Kinds of arguments that several commands take."""

from __future__ import annotations

import math
from typing import Any

import click


class Pid(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """A process id."""

    name = "pid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; fails with a usage error."""
        text = str(value)
        # PID_MAX_LIMIT is 2^22 (include/linux/threads.h); any longer number is a slip of the hand.
        if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) <= 1 << 22:
            self.fail(f"{text!r} is no process id: give a number such as 1234", param, ctx)
        return int(text)


class Seconds(click.FloatRange):
    """A time that ends: neither nan nor inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of seconds; fails with a usage error."""
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds
