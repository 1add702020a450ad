"""``memtrace attach PID``: trace a running process, show it live, and print the report."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from tracer.cli.stopping import StopSignals
    from tracer.model.report import Report
    from tracer.probes.program import Program
    from tracer.target import TargetInfo
    from tracer.unwind.access import UnwindSizes


class _Pid(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """A process id."""

    name = "pid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        # PID_MAX_LIMIT is 2^22 (include/linux/threads.h); any longer number is a slip of the hand.
        if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) <= 1 << 22:
            self.fail(f"{text!r} is no process id: give a number such as 1234", param, ctx)
        return int(text)


class _Seconds(click.FloatRange):
    """A time that ends: neither nan nor inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


@click.command()
@click.argument("pid", type=_Pid())
@click.option("-d", "--duration", type=_Seconds(min=0, min_open=True), metavar="SECONDS", help="Stop after SECONDS.")
@click.option(
    "-i",
    "--interval",
    type=_Seconds(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Distance of looks, and of the lines when not on a terminal.",
)
@click.option(
    "-n", "--top", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Stacks and VMAs shown."
)
@click.option("--allocator-frames", is_flag=True, help="Show the allocator's own frames at the top of stacks, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON (schema memtrace/1).")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the report to FILE, not to stdout."
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--max-live",
    type=click.IntRange(min=1024, max=1 << 26),
    default=1 << 20,
    show_default=True,
    metavar="N",
    help="Live blocks that can be told apart; each takes about 100 bytes of kernel memory when used.",
)
def attach(
    pid: int,
    duration: float | None,
    interval: float,
    top: int,
    allocator_frames: bool,
    as_json: bool,
    output: Path | None,
    force: bool,
    max_live: int,
) -> None:
    """Trace process PID: which call stacks make it grow.

    Runs until Ctrl-C, for --duration, or to the process's end, then prints the report: growth by class of memory and
    VMA, its causes, and the call stacks behind it. The process is neither stopped nor changed.

    Exit status: 0 a report was made, 1 the process could not be traced, 2 usage.
    """
    # Heavy modules are imported once it is clear that they are needed: --help must not wait for them.
    from tracer.cli.output import ReportFile, write_to_stdout
    from tracer.cli.stopping import StopSignals
    from tracer.errors import MemtraceError
    from tracer.target import check_privileges, check_target

    target = check_target(pid)
    check_privileges(sys.argv[1:])
    file = ReportFile(output, force=force) if output else None
    try:
        with StopSignals() as signals:
            report = _trace(target, duration, interval, max_live, signals)

            def render(out: TextIO) -> None:
                _render(report, out, as_json=as_json, top=top, allocator_frames=allocator_frames)

            if file is None:
                write_to_stdout(render)
                return
            try:
                file.write(render)
            except MemtraceError:
                write_to_stdout(render)  # what was gathered must not be lost with the file
                raise
    finally:
        if file is not None:
            file.discard()


def _trace(target: TargetInfo, duration: float | None, interval: float, max_live: int, signals: StopSignals) -> Report:
    import os
    from concurrent.futures import ThreadPoolExecutor

    from tracer.probes.holder import ProbeHolder

    holder = ProbeHolder()  # it forks, so it comes before the first thread
    try:
        # Compiling takes most of the start: meanwhile everything else is imported.
        with ThreadPoolExecutor(max_workers=1) as compiler:
            loading = compiler.submit(_compile, target.pid, max_live)
            from tracer.report.live import GuardedView, open_view
            from tracer.session import Options, Session

            program, sizes = loading.result()
        session = Session(target, Options(duration, interval), program, holder, sizes, _say, signals.requested)
        return session.run(GuardedView(open_view(sys.stdout, sys.stderr, os.environ)))
    finally:
        holder.close()


def _say(line: str) -> None:
    """A line for the user on stderr; that it cannot be written must not cost the report."""
    from contextlib import suppress

    from tracer.report.safe import printable

    with suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


def _compile(pid: int, max_live: int) -> tuple[Program, UnwindSizes]:
    from tracer.probes.program import Limits, Program
    from tracer.procfs.maps import read_maps
    from tracer.unwind.access import plan_sizes

    sizes = plan_sizes(pid, read_maps(pid))
    return Program(pid, Limits(live=max_live), sizes), sizes


def _render(report: Report, out: TextIO, *, as_json: bool, top: int, allocator_frames: bool) -> None:
    if as_json:
        from tracer.report.json import write_json

        write_json(report, out)
        return
    import shutil

    from tracer.report.text import TextReport

    text = TextReport.from_report(report, top=top, allocator_frames=allocator_frames)
    height = shutil.get_terminal_size().lines if out.isatty() else None
    text.render(out, colour=out.isatty(), height=height)
