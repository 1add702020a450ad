"""``memtrace record PID``: trace a running process and keep the session in a file, to be looked at later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from tracer.cli.attach import run
from tracer.cli.parameters import Pid
from tracer.cli.report_options import ReportOptions, report_options
from tracer.cli.tracing_options import TracingOptions, tracing_options

_REPORT_SUFFIXES = (".txt", ".text", ".log", ".json", ".jsonl", ".html", ".folded", ".csv", ".gz", ".pprof")


@click.command()
@click.argument("pid", type=Pid())
@tracing_options
@report_options
def record(pid: int, tracing_options: TracingOptions, report_options: ReportOptions) -> None:
    """Trace process PID as attach does, and record the session.

    The file is given by -o FILE.memtrace; without that it is memtrace-PID-DATE-TIME.memtrace in this directory. It is
    written as the session goes, so that an interval is lost at most, however it ends. See also: memtrace report,
    memtrace diff.

    Exit status: 0 a report was made, 1 the process could not be traced, 2 usage.
    """
    from datetime import datetime

    path = Path(f"memtrace-{pid}-{datetime.now():%Y%m%d-%H%M%S}.memtrace")
    # Here -o names the recording, whatever it is called; only what is clearly a report's file is that.
    unclear = [file for file in report_options.reports if file.suffix.lower() not in _REPORT_SUFFIXES]
    if unclear and not report_options.recordings:
        path = unclear[0]
        rest = tuple(file for file in report_options.output if file != path)
        report_options = replace(report_options, output=rest)
    run(pid, tracing_options, report_options, path)
