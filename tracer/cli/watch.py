"""``memtrace watch PID``: growth by class and VMA over time, without BPF, and without root for one's own."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from tracer.cli.charting import chart_option
from tracer.cli.params import Pid, Seconds

if TYPE_CHECKING:
    from tracer.cli.charting import ChartFile
    from tracer.cli.stopping import StopSignals
    from tracer.model.watch import WatchState, WatchSummary
    from tracer.report.screen import View
    from tracer.target import TargetInfo
    from tracer.watch.session import WatchOptions


@click.command()
@click.argument("pid", type=Pid())
@click.option("-d", "--duration", type=Seconds(min=0, min_open=True), metavar="SECONDS", help="Stop after SECONDS.")
@click.option(
    "-i",
    "--interval",
    type=Seconds(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Distance of looks.",
)
@click.option("-n", "--top", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="VMAs shown.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines (schema memtrace-watch/1).")
@click.option("--full", is_flag=True, help="Read smaps at start and end even where that takes long.")
@chart_option("growth by class over time")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def watch(
    pid: int,
    duration: float | None,
    interval: float,
    top: int,
    as_json: bool,
    full: bool,
    chart: Path | None,
    force: bool,
) -> None:
    """Watch process PID: whether it grows, where, and how fast.

    Reads /proc only: no BPF, and no root for one's own processes. Runs until Ctrl-C, for --duration, or to the
    process's end, then prints a summary: the verdict, growth by class of memory and by VMA, and when it will run into a
    limit. What its reads cost the process is measured and bounded.

    Exit status: 0 a summary was made, 1 the process could not be watched, 2 usage.
    """
    from tracer.cli.charting import ChartFile
    from tracer.cli.stopping import StopSignals
    from tracer.target import check_target
    from tracer.watch.session import WatchOptions

    target = check_target(pid, "memtrace watch")
    with ExitStack() as stack:
        picture = stack.enter_context(ChartFile(chart, force=force)) if chart else None
        signals = stack.enter_context(StopSignals())
        view = _open_view(as_json=as_json, top=top)
        summary = _watch(target, WatchOptions(duration, interval, full), view, signals)
        # The picture must not be lost with standard output, nor the summary with the picture.
        stack.callback(_draw, summary, picture)
        _print(summary, as_json=as_json, top=top)


def _watch(target: TargetInfo, options: WatchOptions, view: View[WatchState], signals: StopSignals) -> WatchSummary:
    import time

    from tracer.cli.streams import say
    from tracer.target import ProcessHandle
    from tracer.watch.readers import ProcReaders
    from tracer.watch.session import WatchSession

    with ExitStack() as stack:
        life = ProcessHandle(target)
        stack.callback(life.close)
        readers = ProcReaders(target.pid)
        stack.callback(readers.close)
        session = WatchSession(
            target, options, readers, life, say=say, stop_requested=signals.requested, clock=time.monotonic
        )
        return session.run(view)


def _open_view(*, as_json: bool, top: int) -> View[WatchState]:
    from tracer.cli.streams import StdoutView
    from tracer.report.screen import GuardedView, ScreenView

    # What the encoding of a terminal lacks is escaped, not fatal.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    if as_json:
        from datetime import UTC, datetime

        from tracer.report.watch_json import JsonView

        return StdoutView(JsonView(sys.stdout, lambda: datetime.now(UTC).astimezone()))
    from tracer.report.watch_screen import open_watch_view

    view = open_watch_view(sys.stdout, os.environ, top)
    return GuardedView(view) if isinstance(view, ScreenView) else StdoutView(view)


def _print(summary: WatchSummary, *, as_json: bool, top: int) -> None:
    from tracer.cli.output import write_to_stdout
    from tracer.report.watch_json import write_summary
    from tracer.report.watch_text import WatchText

    def render(file: TextIO) -> None:
        if as_json:
            write_summary(summary, file)
        else:
            WatchText(summary, top).render(file, colour=file.isatty())

    write_to_stdout(render)


def _draw(summary: WatchSummary, picture: ChartFile | None) -> None:
    if picture is None:
        return
    from tracer.report.charts import draw_growth

    # Looks at which the classes were not read say nothing of them.
    looks = [look for look in summary.looks if not look.detail_age]
    names = sorted({name for look in looks for name in look.classes})
    picture.draw(
        draw_growth,
        [look.seconds for look in looks],
        {name: [look.classes.get(name, 0) for look in looks] for name in names},
        title=f"process {summary.pid}  {summary.command}",
        note=summary.verdict.text,
    )
