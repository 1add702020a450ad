"""Kinds of values on the command line that several commands take."""

from __future__ import annotations

import math
from typing import Any

import click


class Pid(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """A process id."""

    name = "pid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The id as a number; anything else is a usage error."""
        text = str(value)
        # PID_MAX_LIMIT is 2^22 (include/linux/threads.h); any longer number is a slip of the hand.
        if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) <= 1 << 22:
            self.fail(f"{text!r} is no process id: give a number such as 1234", param, ctx)
        return int(text)


class Seconds(click.FloatRange):
    """A time that ends: neither nan nor inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds; anything else is a usage error."""
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


class Share(click.FloatRange):
    """A percentage as a share, or ``none`` for no limit."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The share, None for no limit; anything else is a usage error."""
        if str(value).lower() in ("none", "off"):
            return None
        percentage: Any = super().convert(str(value).removesuffix("%"), param, ctx)  # type: ignore[arg-type,unused-ignore]
        if not math.isfinite(percentage):
            self.fail(f"{value} is no percentage", param, ctx)
        return percentage / 100
