"""``memtrace attach PID``: trace a running process, show it live, and print the report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from tracer.cli.params import Pid, Seconds, Share

if TYPE_CHECKING:
    from tracer.cli.output import ReportFile
    from tracer.cli.stopping import StopSignals
    from tracer.model.report import Report, RssSource
    from tracer.options import Options
    from tracer.probes.program import Program
    from tracer.target import TargetInfo
    from tracer.unwind.access import UnwindSizes


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
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the report as one HTML page to FILE, too."
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--rss-source",
    type=click.Choice(["rss-stat", "faults", "none"]),
    default="rss-stat",
    show_default=True,
    help="Where changes of RSS are learnt: the kernel's counters (exact), page faults (estimates), or not at all.",
)
@click.option(
    "--max-live",
    type=click.IntRange(min=1024, max=1 << 26),
    default=1 << 20,
    show_default=True,
    metavar="N",
    help="Live blocks that can be told apart; each takes about 100 bytes of kernel memory when used.",
)
@click.option(
    "--sample-bytes",
    type=click.IntRange(min=1, max=1 << 30),
    default=16 << 10,
    show_default=True,
    metavar="N",
    help="Mean distance of samples, in allocated bytes; blocks of that size or larger are all seen. 1: every block.",
)
@click.option(
    "--max-overhead",
    type=Share(min=0, min_open=True, max=100),
    default="5",
    show_default=True,
    metavar="PCT",
    help="Share of the process's CPU time that tracing may cost, in percent; above it, less is traced. none: no limit.",
)
def attach(
    pid: int,
    duration: float | None,
    interval: float,
    top: int,
    allocator_frames: bool,
    as_json: bool,
    output: Path | None,
    html: Path | None,
    force: bool,
    rss_source: RssSource,
    max_live: int,
    sample_bytes: int,
    max_overhead: float | None,
) -> None:
    """Trace process PID: which call stacks make it grow.

    Runs until Ctrl-C, for --duration, or to the process's end, then prints the report: growth by class of memory and
    VMA, its causes, and the call stacks behind it. The process is neither stopped nor changed.

    Exit status: 0 a report was made, 1 the process could not be traced, 2 usage.
    """
    # Heavy modules are imported once it is clear that they are needed: --help must not wait for them.
    from tracer.cli.stopping import StopSignals
    from tracer.errors import UsageError
    from tracer.options import Options
    from tracer.target import check_privileges, check_target

    target = check_target(pid)
    check_privileges(sys.argv[1:])
    if html is not None and html == output:
        raise UsageError(f"{html} cannot be both", "give --output and --html files of their own")
    with ExitStack() as files:
        file, page = (_report_file(path, force, files) for path in (output, html))
        with StopSignals() as signals:
            options = Options(duration, interval, rss_source, sample_bytes, max_overhead)
            report = _trace(target, options, max_live, signals)

            def render(out: TextIO) -> None:
                _render(report, out, as_json=as_json, top=top, allocator_frames=allocator_frames)

            try:
                _write(render, file)
            finally:
                if page is not None:
                    page.write(lambda out: _render_html(report, out))


def _report_file(path: Path | None, force: bool, files: ExitStack) -> ReportFile | None:
    """The file at ``path``, open and checked; whatever is not complete in the end is discarded."""
    from tracer.cli.output import ReportFile

    if path is None:
        return None
    file = ReportFile(path, force=force)
    files.callback(file.discard)
    return file


def _write(render: Callable[[TextIO], None], file: ReportFile | None) -> None:
    from tracer.cli.output import write_to_stdout
    from tracer.errors import MemtraceError

    if file is None:
        write_to_stdout(render)
        return
    try:
        file.write(render)
    except MemtraceError:
        write_to_stdout(render)  # what was gathered must not be lost with the file
        raise


def _trace(target: TargetInfo, options: Options, max_live: int, signals: StopSignals) -> Report:
    import os
    from concurrent.futures import ThreadPoolExecutor

    from tracer.calibration import Calibration
    from tracer.probes.holder import ProbeHolder

    holder, calibration = ProbeHolder(), Calibration()  # they fork, so they come before the first thread
    try:
        # Compiling takes most of the start: meanwhile everything else is imported.
        with ThreadPoolExecutor(max_workers=1) as compiler:
            loading = compiler.submit(_compile, target.pid, max_live)
            from tracer.report.live import GuardedView, open_view
            from tracer.session import Session

            program, sizes = loading.result()
        session = Session(target, options, program, holder, sizes, _say, signals.requested, calibration.result)
        return session.run(GuardedView(open_view(sys.stdout, sys.stderr, os.environ)))
    finally:
        calibration.close()
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


def _render_html(report: Report, out: TextIO) -> None:
    from tracer.report.html import write_html

    write_html(report, out)
