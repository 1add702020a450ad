"""The options that say in which form a report is written, and where to: the same for every command that makes one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

import click

from tracer.cli.option_groups import option_group

if TYPE_CHECKING:
    from tracer.cli.output import ReportFile
    from tracer.model.report import Report
    from tracer.model.timeline import Timeline

# Files that are recordings of the session, not its report.
RECORDING_SUFFIXES = (".memtrace", ".db")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What the user typed."""

    top: int
    allocator_frames: bool
    as_json: bool
    output: tuple[Path, ...]
    html: Path | None
    force: bool

    @property
    def recordings(self) -> list[Path]:
        """Those of the output files that are to be recordings."""
        return [path for path in self.output if path.suffix in RECORDING_SUFFIXES]

    @property
    def reports(self) -> list[Path]:
        """The other ones."""
        return [path for path in self.output if path.suffix not in RECORDING_SUFFIXES]


_OPTIONS = (
    click.option(
        "-n",
        "--top",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        metavar="N",
        help="Stacks and VMAs shown.",
    ),
    click.option("--allocator-frames", is_flag=True, help="Show the allocator's own frames at the top of stacks, too."),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON (schema memtrace/1)."),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="FILE",
        help="Write the report to FILE, not to stdout. FILE.memtrace: record the session, for memtrace report.",
    ),
    click.option(
        "--html",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write the report as one HTML page to FILE, too.",
    ),
    click.option("--force", is_flag=True, help="Replace FILE if it exists."),
)

# For commands that make a report: they receive these options as ``report_options``.
report_options = option_group("report_options", ReportOptions, _OPTIONS)


class Outputs:
    """Where a report is to go, each place checked and opened before there is a report; used as a context manager."""

    def __init__(self, options: ReportOptions) -> None:
        """Raises UsageError where a file cannot be written, or is asked for twice."""
        from tracer.errors import UsageError

        self._options = options
        if len(options.reports) > 1:
            raise UsageError("-o: more than one file for the report", "one may be the report's, one a .memtrace")
        if options.html is not None and options.html in options.output:
            raise UsageError(f"{options.html} cannot be both", "give --output and --html files of their own")
        with ExitStack() as files:
            self._file = self._open(options.reports[0] if options.reports else None, files)
            self._page = self._open(options.html, files)
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no trace of files that were not written."""
        self._files.close()

    def write(self, report: Report, timeline: Callable[[], Timeline | None] = lambda: None) -> None:
        """Write the report everywhere; ``timeline`` is asked for where it is drawn. Raises MemtraceError."""
        try:
            self._write(lambda out: self._render(report, out))
        finally:
            if self._page is not None:
                self._page.write(lambda out: _render_html(report, out, timeline()))

    def _open(self, path: Path | None, files: ExitStack) -> ReportFile | None:
        from tracer.cli.output import ReportFile

        if path is None:
            return None
        file = ReportFile(path, force=self._options.force)
        files.callback(file.discard)
        return file

    def _write(self, render: Callable[[TextIO], None]) -> None:
        from tracer.cli.output import write_to_stdout
        from tracer.errors import MemtraceError

        if self._file is None:
            write_to_stdout(render)
            return
        try:
            self._file.write(render)
        except MemtraceError:
            write_to_stdout(render)  # what was gathered must not be lost with the file
            raise

    def _render(self, report: Report, out: TextIO) -> None:
        if self._options.as_json:
            from tracer.report.json import write_json

            write_json(report, out)
            return
        import shutil

        from tracer.report.text import TextReport

        text = TextReport.from_report(report, top=self._options.top, allocator_frames=self._options.allocator_frames)
        height = shutil.get_terminal_size().lines if out.isatty() else None
        text.render(out, colour=out.isatty(), height=height)


def _render_html(report: Report, out: TextIO, timeline: Timeline | None) -> None:
    from tracer.report.html import write_html

    write_html(report, out, timeline)
