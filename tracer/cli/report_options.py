"""The options that say in which form a report is written, and where to: the same for every command that makes one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from tracer.cli.option_groups import option_group

if TYPE_CHECKING:
    from tracer.cli.output import ReportFile
    from tracer.model.report import Report
    from tracer.model.timeline import Timeline
    from tracer.report.formats import Choice

_STDOUT = Path("-")
# Files that are recordings of the session, not its report.
_RECORDING_SUFFIXES = (".memtrace", ".db")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What the user typed."""

    top: int
    allocator_frames: bool
    format_name: str | None
    as_json: bool
    output: tuple[Path, ...]
    force: bool

    @property
    def recordings(self) -> list[Path]:
        """Those of the output files that are to be recordings."""
        return [path for path in self.output if path.suffix.lower() in _RECORDING_SUFFIXES]

    @property
    def reports(self) -> list[Path]:
        """Those of the output files that are to hold the report."""
        return [path for path in self.output if path != _STDOUT and path not in self.recordings]


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
    click.option(
        "--format",
        "format_name",
        metavar="FORMAT",
        help="text, json, html, folded, pprof, csv; csv:TABLE, folded:METRIC.  [default: by FILE's suffix, else text]",
    ),
    click.option("--json", "as_json", is_flag=True, help="The same as --format json (schema memtrace/1)."),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="FILE",
        help="Write the report to FILE (.json, .html, .folded, .pb.gz, .csv), not to stdout (-); may be repeated. "
        "FILE.memtrace: record the session, for memtrace report.",
    ),
    click.option("--force", is_flag=True, help="Replace FILE if it exists."),
)


# For commands that make a report: they receive these options as ``report_options``.
report_options = option_group("report_options", ReportOptions, _OPTIONS)


class Outputs:
    """Where a report is to go, each place checked and opened before there is a report; used as a context manager."""

    def __init__(self, options: ReportOptions, say: Callable[[str], None]) -> None:
        """Raises UsageError where a format does not exist or fit, or a file cannot be written."""
        self._options = options
        self._say = say
        self._stdout, paths = _choices(options)
        self._files: list[tuple[Path, Choice, ReportFile]] = []
        try:
            for path, choice in paths:
                self._files.append((path, choice, self._open(path, choice)))
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no trace of files that were not written."""
        self._discard()

    def write(self, report: Report, course: Callable[[], Timeline | None] = lambda: None) -> None:
        """Write the report everywhere. Raises MemtraceError where a place failed, when all others have it.

        ``course`` tells how the session went; it is asked where that is shown.
        """
        from tracer.cli.output import write_to_stdout
        from tracer.errors import MemtraceError
        from tracer.report.formats import TEXT

        failed: MemtraceError | None = None
        spare: Choice | None = None
        for path, choice, file in self._files:
            try:
                file.write(functools.partial(self._render, report, choice, course))
                self._say(f"wrote {path} ({choice.format.name}: {choice.format.hint})")
            except MemtraceError as error:
                failed = failed or error
                # What was gathered must not be lost with the file.
                spare = TEXT if choice.format.binary else choice
        shown = self._stdout or spare
        if shown is not None:
            write_to_stdout(functools.partial(self._render, report, shown, course), binary=shown.format.binary)
        if failed is not None:
            raise failed

    def _open(self, path: Path, choice: Choice) -> ReportFile:
        from tracer.cli.output import ReportFile

        return ReportFile(path, force=self._options.force, binary=choice.format.binary)

    def _render(self, report: Report, choice: Choice, course: Callable[[], Timeline | None], out: Any) -> None:
        if choice.format.writer is not None:
            choice.write(report, out, course)
            return
        import shutil

        from tracer.report.text import TextReport

        text = TextReport.from_report(report, top=self._options.top, allocator_frames=self._options.allocator_frames)
        height = shutil.get_terminal_size().lines if out.isatty() else None
        text.render(out, colour=out.isatty(), height=height)

    def _discard(self) -> None:
        for _, _, file in self._files:
            with suppress(OSError):
                file.discard()


def _choices(options: ReportOptions) -> tuple[Choice | None, list[tuple[Path, Choice]]]:
    """The form for standard output (None: nothing goes there), and the files with theirs. Raises UsageError."""
    from tracer.errors import UsageError
    from tracer.report.formats import TEXT, format_of_file

    asked = _asked_for(options)
    paths = options.reports
    to_stdout = _STDOUT in options.output or not paths
    if len({path.absolute() for path in paths}) < len(paths):
        raise UsageError("-o: the same file twice", "name each file once")
    if asked is not None and len(paths) > 1 and not to_stdout:
        raise UsageError("--format with several files", "let their suffixes say it: -o a.json -o a.pb.gz")
    stdout = (asked or TEXT) if to_stdout else None
    if stdout is not None and stdout.format.binary and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError(
            f"{stdout.format.name} is binary: it does not go to a terminal",
            f"write it to a file: -o FILE{stdout.format.suffixes[0]}",
        )
    alone = asked if len(paths) == 1 and not to_stdout else None
    return stdout, [(path, alone or format_of_file(path.name)) for path in paths]


def _asked_for(options: ReportOptions) -> Choice | None:
    from tracer.errors import UsageError
    from tracer.report.formats import FORMATS, Choice, parse_format

    named = parse_format(options.format_name) if options.format_name is not None else None
    if not options.as_json:
        return named
    if named is not None and named.format.name != "json":
        raise UsageError(f"--json and --format {options.format_name}", "give one of the two")
    return Choice(FORMATS["json"])
