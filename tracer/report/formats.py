"""The forms that a report can take: names, suffixes of files, and what writes them. The one list of them all.

A form may have parts, of which one is written: ``csv:vmas`` is the table of VMAs, ``folded:alloc_space`` the stacks by
bytes allocated. In a file's name the part stands before the suffix: ``growth.vmas.csv``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import IO, Any

from tracer.errors import UsageError
from tracer.model.report import Report
from tracer.model.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Format:
    """A form of the report. ``writer`` is ``module:function``, imported when it is needed; None for the text form,
    which needs to know the terminal.

    ``hint`` says what reads it, in a few words. ``has_course``: it shows how the session went, where that is known.
    """

    name: str
    suffixes: tuple[str, ...]
    writer: str | None
    hint: str
    binary: bool = False
    parts: tuple[str, ...] = ()
    has_course: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A format, and which part of it (None: the one that is written by default)."""

    format: Format
    part: str | None = None

    def write(self, report: Report, file: IO[Any], course: Callable[[], Timeline | None] = lambda: None) -> None:
        """Write the report to a file of the right kind: bytes where the format is binary, else text.

        ``course`` tells how the session went; it is asked only for a format that shows that.
        """
        if self.format.writer is None:
            raise ValueError("the text form is written by tracer.report.text")
        module, _, function = self.format.writer.partition(":")
        write: Callable[..., None] = getattr(import_module(module), function)
        write(report, file, *([self.part] if self.part else []), *([course()] if self.format.has_course else []))


# Stated here and not taken from the modules that write them, so that --help need not import those.
_METRICS = ("inuse_space", "inuse_objects", "alloc_space", "alloc_objects", "rss_growth")
_TABLES = ("stacks", "classes", "vmas", "ledger")

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("text", (".txt", ".text", ".log"), None, "for people"),
        Format("json", (".json", ".jsonl"), "tracer.report.json:write_json", "schema memtrace/1"),
        Format(
            "html",
            (".html", ".htm"),
            "tracer.report.html:write_html",
            "one page for a browser, to attach",
            has_course=True,
        ),
        Format(
            "folded",
            (".folded", ".collapsed"),
            "tracer.report.folded:write_folded",
            "flamegraph.pl, inferno, speedscope",
            parts=_METRICS,
        ),
        Format(
            "pprof",
            (".pb.gz", ".pprof"),
            "tracer.report.pprof:write_pprof",
            "go tool pprof, speedscope, Pyroscope",
            binary=True,
        ),
        Format("csv", (".csv",), "tracer.report.tables:write_csv", "spreadsheets", parts=_TABLES),
    )
}
TEXT = Choice(FORMATS["text"])


def parse_format(text: str) -> Choice:
    """``NAME`` or ``NAME:PART`` as typed. Raises UsageError, listing what there is."""
    name, colon, part = text.partition(":")
    format_ = FORMATS.get(name)
    if format_ is None:
        raise UsageError(f"there is no format {name!r}", f"choose one of: {', '.join(FORMATS)}")
    if colon and part not in format_.parts:
        known = f"choose one of: {', '.join(f'{name}:{each}' for each in format_.parts)}" if format_.parts else None
        raise UsageError(f"the format {name} has no part {part!r}", known or f"write: {name}")
    return Choice(format_, part or None)


def tells_format(name: str) -> bool:
    """Whether a file's name ends as those of a report do."""
    return name.lower().endswith(tuple(suffix for each in FORMATS.values() for suffix in each.suffixes))


def format_of_file(name: str) -> Choice:
    """The format that a file's name tells, by its suffix; text where it tells none."""
    lower = name.lower()
    for format_ in FORMATS.values():
        for suffix in format_.suffixes:
            if lower.endswith(suffix):
                # "growth.vmas.csv" or "vmas.csv"
                part = lower.removesuffix(suffix).rpartition(".")[2]
                return Choice(format_, part if part in format_.parts else None)
    return TEXT
