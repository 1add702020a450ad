"""``memtrace attach PID``: trace a running process, show it live, and write the report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracer.cli.outlet_options import OutletOptions, outlet_options
from tracer.cli.params import Pid
from tracer.cli.report_options import Outputs, ReportOptions, report_options
from tracer.cli.trace_options import trace_options

if TYPE_CHECKING:
    from tracer.children import ChildTracers
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
    run(pid, options, report_options, outlet_options)


def run(
    pid: int,
    options: Options,
    report_options: ReportOptions,
    outlet_options: OutletOptions,
    recording: Path | None = None,
) -> None:
    """Trace a process and write its report; where that is to go is checked first.

    ``recording`` is recorded to, unless the options name a file for that. Raises MemtraceError.
    """
    # Heavy modules are imported once it is clear that they are needed: --help must not wait for them.
    from tracer.cli.recording import course_of, open_recorder
    from tracer.cli.stopping import StopSignals
    from tracer.cli.streams import say
    from tracer.cli.tracing import trace
    from tracer.push.endpoint import hidden
    from tracer.target import check_privileges, check_target

    target = check_target(pid)
    check_privileges([hidden(argument) for argument in sys.argv[1:]])
    destinations = outlet_options.destinations(target)
    with ExitStack() as stack:
        outputs = stack.enter_context(Outputs(report_options, say))
        recorder = open_recorder(target, options, report_options, recording)
        if recorder is not None:
            stack.callback(recorder.close)
        children = stack.enter_context(_child_tracers(pid, options, report_options)) if options.children else None
        signals = stack.enter_context(StopSignals())
        report = trace(target, options, signals, destinations, children, recorder)
        texts = children.reports() if children is not None else []
        if children is not None:
            report = replace(report, notes=tuple(_with_children(report.notes, children)))
        if recorder is not None:
            recorder.finish(report)
        outputs.write(report, lambda: course_of(recorder, report))
        for text in texts:
            click.echo(text if report_options.as_json else f"\n{text}", nl=False)


def _child_tracers(pid: int, options: Options, report_options: ReportOptions) -> ChildTracers:
    """The same options for each child, as far as they are about tracing and about the form of the report."""
    from tracer.children import ChildTracers
    from tracer.cli.streams import say

    limit = "none" if options.max_overhead is None else str(options.max_overhead * 100)
    passed = [f"--interval={options.interval}", f"--sample-bytes={options.sample_bytes}", f"--max-overhead={limit}"]
    passed += [f"--rss-source={options.rss_source}", f"--max-live={options.max_live}", f"--top={report_options.top}"]
    passed += ["--json"] if report_options.as_json else []
    passed += ["--allocator-frames"] if report_options.allocator_frames else []
    return ChildTracers(pid, passed, say)


def _with_children(notes: Sequence[str], children: ChildTracers) -> Iterator[str]:
    for note in notes:
        made, words, _ = note.partition(" made in the window: not traced")
        yield children.summary(int(made.split()[0].replace(",", ""))) if words else note
