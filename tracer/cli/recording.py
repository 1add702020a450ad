"""The recording that a traced session leaves where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.cli.report_options import ReportOptions
    from tracer.model.report import Report
    from tracer.model.timeline import Timeline
    from tracer.options import Options
    from tracer.store.recorder import FileRecorder
    from tracer.target import TargetInfo


def open_recorder(
    target: TargetInfo, options: Options, report_options: ReportOptions, path: Path | None
) -> FileRecorder | None:
    """What records to the file that the options name, or else to ``path``; None where nothing is to be recorded.

    To be called before there are threads; close it in any case. Raises UsageError where the file cannot be written.
    """
    from dataclasses import asdict

    from tracer.cli.streams import say
    from tracer.errors import UsageError

    if len(report_options.recordings) > 1:
        raise UsageError("-o: more than one recording", "name one file that ends in .memtrace")
    path = report_options.recordings[0] if report_options.recordings else path
    if path is None:
        return None
    from tracer.store.recorder import FileRecorder

    asked = {name: None if value is None else str(value) for name, value in asdict(options).items()}
    return FileRecorder(path, force=report_options.force, pid=target.pid, options=asked, say=say)


def course_of(recorder: FileRecorder | None, report: Report) -> Timeline | None:
    """How the window went, as the recording has it, which is closed; None where there is none."""
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
