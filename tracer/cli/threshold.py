"""``--fail-above RATE``: an exit code for CI where something grows faster than it may."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import click

from tracer.units import human_rate

_RATE = re.compile(r"(\d+(?:\.\d+)?|\.\d+) *([KMGT]i?)?B? */ *(s|sec|min|m|h|hour|d|day)", re.ASCII | re.IGNORECASE)
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "d": 86_400, "day": 86_400}


class GrowthRate(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """Bytes per time, such as ``1MiB/min``; the value is in bytes per second. KB, MB and GB are powers of 1024, too."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; fails with a usage error."""
        if isinstance(value, float):
            return value
        match = _RATE.fullmatch(str(value).strip()[:40])
        if match is None:
            self.fail(f"{value!r} is no rate: give one such as 1MiB/min, 500KiB/h, 0B/s", param, ctx)
        size = float(match[1]) * _SIZES[(match[2] or "").upper().removesuffix("I")]
        return size / _TIMES[match[3].lower()]


fail_above = click.option(
    "--fail-above",
    type=GrowthRate(),
    metavar="RATE",
    help="Exit with 3 where RSS or a stack grows faster, such as 1MiB/min.",
)


def check(limit: float | None, rates: Iterable[tuple[str, float]]) -> int:
    """The exit code for these rates (what grows, bytes per second): 3, and a line for the fastest, above the limit."""
    from tracer.cli.streams import say
    from tracer.errors import EXIT_ABOVE_LIMIT, EXIT_OK

    if limit is None:
        return EXIT_OK
    above = sorted(((rate, what) for what, rate in rates if rate > limit), reverse=True)
    if not above:
        return EXIT_OK
    rate, what = above[0]
    others = f", and {len(above) - 1} more" if above[1:] else ""
    say(f"above --fail-above {_per_minute(limit)}: {what} grows by {_per_minute(rate)}{others}")
    return EXIT_ABOVE_LIMIT


def _per_minute(rate: float) -> str:
    return human_rate(rate * 60).removesuffix("/s") + "/min"
