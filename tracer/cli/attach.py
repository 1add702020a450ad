"""``memtrace attach PID``: trace a running process, show it live, and print the report."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracer.cli.parameters import Pid
from tracer.cli.report_options import Outputs, ReportOptions, report_options
from tracer.cli.tracing_options import TracingOptions, tracing_options

if TYPE_CHECKING:
    from tracer.cli.stopping import StopSignals
    from tracer.model.look import Recorder
    from tracer.model.report import Report
    from tracer.model.timeline import Timeline
    from tracer.options import Options
    from tracer.probes.program import Program
    from tracer.store.recorder import FileRecorder
    from tracer.target import TargetInfo
    from tracer.unwind.access import UnwindSizes


@click.command()
@click.argument("pid", type=Pid())
@tracing_options
@report_options
def attach(pid: int, tracing_options: TracingOptions, report_options: ReportOptions) -> None:
    """Trace process PID: which call stacks make it grow.

    Runs until Ctrl-C, for --duration, or to the process's end, then prints the report: growth by class of memory and
    VMA, its causes, and the call stacks behind it. The process is neither stopped nor changed.

    Exit status: 0 a report was made, 1 the process could not be traced, 2 usage.
    """
    run(pid, tracing_options, report_options)


def run(pid: int, tracing: TracingOptions, report_options: ReportOptions, recording: Path | None = None) -> None:
    """Trace a process and write its report; what the files are to be is checked and opened first.

    ``recording`` is recorded to, unless the options name a file for that. Raises MemtraceError.
    """
    # Heavy modules are imported once it is clear that they are needed: --help must not wait for them.
    from tracer.cli.stopping import StopSignals
    from tracer.target import check_privileges, check_target

    target = check_target(pid)
    check_privileges(sys.argv[1:])
    with ExitStack() as stack:
        outputs = stack.enter_context(Outputs(report_options))
        recorder = _recorder(target, tracing, report_options, recording, stack)
        with StopSignals() as signals:
            report = _trace(target, tracing.session(), tracing.max_live, signals, recorder)
            outputs.write(report, lambda: _timeline(recorder, report))


def _recorder(
    target: TargetInfo, tracing: TracingOptions, options: ReportOptions, path: Path | None, stack: ExitStack
) -> FileRecorder | None:
    """What records, where that is asked for."""
    from dataclasses import asdict

    from tracer.errors import UsageError

    if len(options.recordings) > 1:
        raise UsageError("-o: more than one recording", "name one file that ends in .memtrace")
    path = options.recordings[0] if options.recordings else path
    if path is None:
        return None
    from tracer.store.recorder import FileRecorder

    asked = {name: None if value is None else str(value) for name, value in asdict(tracing).items()}
    recorder = FileRecorder(path, force=options.force, pid=target.pid, options=asked, say=say)
    stack.callback(recorder.close)
    return recorder


def _timeline(recorder: FileRecorder | None, report: Report) -> Timeline | None:
    """How the window went, as the recording has it; None where there is none."""
    if recorder is None:
        return None
    from tracer.errors import MemtraceError
    from tracer.store.course import timeline_of
    from tracer.store.recording import Recording

    recorder.close()
    try:
        with Recording(recorder.path) as recording:
            return timeline_of(recording, report)
    except MemtraceError:
        return None  # a line has said why


def _trace(
    target: TargetInfo, options: Options, max_live: int, signals: StopSignals, recorder: Recorder | None
) -> Report:
    import os
    from concurrent.futures import ThreadPoolExecutor

    from tracer.probes.holder import ProbeHolder

    holder = ProbeHolder()  # it forks, so it comes before the first thread
    try:
        # Compiling takes most of the start: meanwhile everything else is imported.
        with ThreadPoolExecutor(max_workers=1) as compiler:
            loading = compiler.submit(_compile, target.pid, max_live)
            from tracer.report.live import GuardedView, open_view
            from tracer.session import Session

            program, sizes = loading.result()
        session = Session(target, options, program, holder, sizes, say, signals.requested, recorder)
        return session.run(GuardedView(open_view(sys.stdout, sys.stderr, os.environ)))
    finally:
        holder.close()


def say(line: str) -> None:
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
