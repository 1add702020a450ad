"""The options of commands that trace: how long, how often, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from tracer.cli.option_groups import option_group
from tracer.cli.parameters import Seconds

if TYPE_CHECKING:
    from tracer.model.report import RssSource
    from tracer.options import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingOptions:
    """What the user typed."""

    duration: float | None
    interval: float
    rss_source: RssSource
    max_live: int

    def session(self) -> Options:
        """What the session needs to know of it."""
        from tracer.options import Options

        return Options(self.duration, self.interval, self.rss_source)


_OPTIONS = (
    click.option("-d", "--duration", type=Seconds(min=0, min_open=True), metavar="SECONDS", help="Stop after SECONDS."),
    click.option(
        "-i",
        "--interval",
        type=Seconds(min=0.1),
        default=1.0,
        show_default=True,
        metavar="SECONDS",
        help="Distance of looks, and of the lines when not on a terminal.",
    ),
    click.option(
        "--rss-source",
        type=click.Choice(["rss-stat", "faults", "none"]),
        default="rss-stat",
        show_default=True,
        help="Where changes of RSS are learnt: the kernel's counters (exact), page faults (estimates), or not at all.",
    ),
    click.option(
        "--max-live",
        type=click.IntRange(min=1024, max=1 << 26),
        default=1 << 20,
        show_default=True,
        metavar="N",
        help="Live blocks that can be told apart; each takes about 100 bytes of kernel memory when used.",
    ),
)

# For commands that trace: they receive these options as ``tracing_options``.
tracing_options = option_group("tracing_options", TracingOptions, _OPTIONS)
