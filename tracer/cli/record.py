"""``memtrace record PID``: trace a running process and keep the session in a file, to be looked at later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracer.cli.attach import run
from tracer.cli.outlet_options import OutletOptions, outlet_options
from tracer.cli.params import Pid
from tracer.cli.report_options import ReportOptions, report_options
from tracer.cli.trace_options import trace_options

if TYPE_CHECKING:
    from tracer.options import Options


@click.command()
@click.argument("pid", type=Pid())
@trace_options
@report_options
@outlet_options
def record(pid: int, options: Options, report_options: ReportOptions, outlet_options: OutletOptions) -> None:
    """Trace process PID as attach does, and record the session.

    The file is given by -o FILE.memtrace; without that it is memtrace-PID-DATE-TIME.memtrace in this directory. It is
    written as the session goes, so that an interval is lost at most, however it ends. See also: memtrace report,
    memtrace diff.

    Exit status: 0 a report was made, 1 the process could not be traced, 2 usage.
    """
    from datetime import datetime

    from tracer.report.formats import tells_format

    path = Path(f"memtrace-{pid}-{datetime.now():%Y%m%d-%H%M%S}.memtrace")
    # Here -o names the recording, whatever it is called; only what is clearly a report's file is that.
    unclear = [file for file in report_options.reports if not tells_format(file.name)]
    if unclear and not report_options.recordings:
        path = unclear[0]
        rest = tuple(file for file in report_options.output if file != path)
        report_options = replace(report_options, output=rest)
    run(pid, options, report_options, outlet_options, path)
