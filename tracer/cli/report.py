"""``memtrace report FILE``: what a recorded session showed, or part of it; needs neither root nor BPF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracer.cli.report_options import Outputs, ReportOptions, report_options
from tracer.cli.threshold import check, fail_above

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.model.report import Report


@click.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@click.option("--from", "begin", metavar="MOMENT", help="Begin there: 90, 1.5min, 14:03:22, or -30s from the end.")
@click.option("--to", "end", metavar="MOMENT", help="End there.")
@click.option(
    "--debug-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Name functions that had no name by the debug files in DIR, found by build ID.",
)
@fail_above
@report_options
def report(
    file: Path,
    begin: str | None,
    end: str | None,
    debug_dir: Path | None,
    fail_above: float | None,
    report_options: ReportOptions,
) -> int:
    """Show the recorded session FILE again, exactly as it was shown at its end.

    With --from or --to it is part of the session: growth of classes, VMAs and stacks between two looks.

    Exit status: 0 a report was made, 1 the file is no recording or damaged, 2 usage, 3 growth above --fail-above.
    """
    from tracer.cli.streams import say
    from tracer.errors import UsageError
    from tracer.store.course import timeline_of
    from tracer.store.moments import parse_moment
    from tracer.store.part import report_of_recording
    from tracer.store.recording import Recording, require_window

    if report_options.recordings:
        raise UsageError(f"{report_options.recordings[0]}: a report is no recording", "give it another suffix")
    with Recording(file) as recording:
        require_window(recording)
        started, last = recording.origin.started, recording.looks[-1].seconds
        assert started is not None
        moments = [None if text is None else parse_moment(text, started, last) for text in (begin, end)]
        found = report_of_recording(recording, *moments)
        if debug_dir is not None:
            from tracer.store.names import renamed

            found = renamed(found, debug_dir)
        with Outputs(report_options, say) as outputs:
            outputs.write(found, lambda: timeline_of(recording, found))
    return check(fail_above, _rates(found))


def _rates(report: Report) -> Iterator[tuple[str, float]]:
    """How fast RSS and each stack grew over the window."""
    from tracer.report.frames import label

    if report.seconds > 0:
        yield "RSS", report.growth / report.seconds
    for stack in report.stacks:
        yield label(stack.frames, 2, "...") or f"stack {stack.id}", stack.rate
