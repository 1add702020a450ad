"""The options that say how a process is traced: the same for every command that does."""

from __future__ import annotations

import click

from tracer.cli.option_groups import option_group
from tracer.cli.params import Seconds, Share
from tracer.options import Options

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
        "--sample-bytes",
        type=click.IntRange(min=1, max=1 << 30),
        default=16 << 10,
        show_default=True,
        metavar="N",
        help="Mean distance of samples, in allocated bytes; blocks of that size or larger are all seen. 1: all are.",
    ),
    click.option(
        "--max-overhead",
        type=Share(min=0, min_open=True, max=100),
        default="5",
        show_default=True,
        metavar="PCT",
        help="Share of the process's CPU time that tracing may cost, in percent; above it, less is traced. "
        "none: no limit.",
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
    click.option("--children", is_flag=True, help="Trace each child process made meanwhile, too; its report follows."),
)

# For commands that trace: they receive these options as ``options``.
trace_options = option_group("options", Options, _OPTIONS)
