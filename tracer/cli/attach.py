"""``memtrace attach PID``: trace a running process, show it live, and write the report."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tracer.cli.outlet_options import OutletOptions, outlet_options
from tracer.cli.params import Pid
from tracer.cli.report_options import Outputs, ReportOptions, report_options
from tracer.cli.trace_options import trace_options

if TYPE_CHECKING:
    from tracer.options import Options


@click.command()
@click.argument("pid", type=Pid())
@trace_options
@report_options
@outlet_options
def attach(pid: int, options: Options, report_options: ReportOptions, outlet_options: OutletOptions) -> None:
    """Trace process PID: which call stacks make it grow.

    Runs until Ctrl-C, for --duration, or to the process's end, then prints the report: growth by class of memory and
    VMA, its causes, and the call stacks behind it. The process is neither stopped nor changed.

    Exit status: 0 a report was made, 1 the process could not be traced, 2 usage.
    """
    # Heavy modules are imported once it is clear that they are needed: --help must not wait for them.
    from tracer.cli.stopping import StopSignals
    from tracer.cli.tracing import say, trace
    from tracer.push.endpoint import hidden
    from tracer.target import check_privileges, check_target

    target = check_target(pid)
    check_privileges([hidden(argument) for argument in sys.argv[1:]])
    destinations = outlet_options.destinations(target)
    with Outputs(report_options, say) as outputs, StopSignals() as signals:
        outputs.write(trace(target, options, signals, destinations))
