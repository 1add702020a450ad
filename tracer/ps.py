"""One run of ``memtrace ps``: from its options to the views, each with what writes it."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, cast

from tracer.errors import MemtraceError, TargetError, UsageError
from tracer.model.grouping import BY_PART, By, rows_of
from tracer.model.psview import PsView
from tracer.model.system import system_memory
from tracer.model.usage import Row, Survey, total_row, with_growth
from tracer.procfs.meminfo import read_iomem, read_meminfo
from tracer.procfs.source import LiveSource, ProcSource
from tracer.procfs.status import parse_status
from tracer.procs.classes import live_memory, no_memory
from tracer.procs.selection import Selection, own_wrappers, pattern
from tracer.procs.survey import Needs, Surveyor
from tracer.report.lines import page_for, write_lines
from tracer.report.ps import PsStyle, legend, ps_lines
from tracer.report.ps_columns import COLUMNS, PsColumn, default_columns, find_columns, sort_key
from tracer.report.ps_data import chart_rows, write_ps_csv, write_ps_json
from tracer.report.ps_system import system_chart_rows, system_lines, write_system_csv, write_system_json
from tracer.units import plural

Render = Callable[[TextIO], None]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
# The sizes that a chart shows; by the last of them rows are ordered.
_CHARTED = ("swap", "uss", "rss", "pss")
_NOT_WITH_SYSTEM = ("by", "by_mapping", "by_user", "process", "mapping", "user", "columns", "sort", "interval", "pids")


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from, and how to wait, so that tests need not."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC).astimezone()
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Picture:
    """What a chart of a view shows: labels with bytes, and what the bytes are."""

    title: str
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    series: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PsRun:
    """What was asked for, checked. ``say`` receives lines that are for the user but no part of the output.

    ``pictures`` holds the latest view that was shown, as data for a chart.
    """

    source: ProcSource
    options: Mapping[str, Any]
    by: By
    columns: tuple[PsColumn, ...]
    sort: PsColumn
    selection: Selection
    say: Callable[[str], None]
    live: bool = True
    clock: Clock = field(default_factory=Clock)
    pictures: list[Picture] = field(default_factory=list)

    @classmethod
    def from_options(
        cls,
        options: Mapping[str, Any],
        say: Callable[[str], None],
        *,
        source: ProcSource | None = None,
        clock: Clock | None = None,
    ) -> PsRun:
        """Check the options of the command line, by their names there. Raises UsageError.

        ``source`` replaces this machine's /proc, and then nothing is known of memtrace's own processes.
        """
        by = _by(options)
        growth = options["interval"] is not None
        if options["source"] is not None:
            source = _open_capture(options["source"])
        if source is not None and growth and options["source"] is not None:
            raise UsageError("a capture holds one look: growth needs two", "leave --interval out")
        if options["count"] is not None and not growth:
            raise UsageError("--count says how often to look: it needs --interval", "add -i SECONDS")
        if options["as_csv"] and options["as_json"]:
            raise UsageError("--csv and --json are two forms", "choose one")
        if options["percent_of"] is not None:
            _parse_size(options["percent_of"])
        if options["columns"] is not None and options["columns"] != "help":
            columns = find_columns(by, options["columns"], "--columns")
        else:
            columns = tuple(COLUMNS[by][name] for name in default_columns(by, growth=growth))
        (sort,) = find_columns(by, options["sort"] or ("dpss" if growth else "pss"), "--sort")[:1]
        live = source is None
        found = source or LiveSource()
        return cls(found, options, by, columns, sort, _selection(options, found, live), say, live, clock or Clock())

    def views(self) -> Iterator[Render]:
        """What writes each view, as soon as there is one. Raises MemtraceError at the end where nothing matched."""
        if self.options["columns"] == "help":
            yield lambda file: file.writelines(f"{line}\n" for line in legend(tuple(COLUMNS[self.by].values())))
        elif self.options["system"]:
            yield self._system()
        else:
            yield from self._processes()

    def _processes(self) -> Iterator[Render]:
        view = None
        for view in self.looks():
            self.pictures[:] = [self._picture(view)]
            if view.rows or self.options["as_csv"] or self.options["as_json"]:
                yield self._renderer(view)
        if view is not None:
            self._explain_missing(view)

    def _picture(self, view: PsView) -> Picture:
        known = COLUMNS[self.by]
        columns = [known[name] for name in _CHARTED if name in known]
        title = f"Memory by {self.by}" + ("" if self.options["source"] is None else f" ({self.options['source'].name})")
        return Picture(title, tuple(chart_rows(view, columns)), tuple(column.title for column in columns))

    def looks(self) -> Iterator[PsView]:
        """One view, or, with an interval, one for each pair of looks; Ctrl-C ends them once there is one."""
        surveyor = Surveyor(self.source, self.selection, self._needs(), live_memory if self.live else no_memory)
        interval = self.options["interval"]
        if interval is None:
            survey = self._named(surveyor.look())
            yield self._view(survey, rows_of(survey.processes, self.by), None)
            return
        count = 1 if self.options["count"] is None else self.options["count"]
        before, then = rows_of(self._named(surveyor.look()).processes, self.by), self.clock.monotonic()
        shown = 0
        while count == 0 or shown < count:
            try:
                self.clock.sleep(max(0.0, then + interval - self.clock.monotonic()))
                survey, now = self._named(surveyor.look()), self.clock.monotonic()
            except KeyboardInterrupt:
                if shown:
                    return
                raise
            rows = rows_of(survey.processes, self.by)
            yield self._view(survey, with_growth(rows, before), now - then)
            before, then, shown = rows, now, shown + 1

    def _needs(self) -> Needs:
        wanted = {column.needs for column in (*self.columns, self.sort)}
        return Needs(
            parts=cast(Any, self.by) if self.by in BY_PART else None,
            maps="maps" in wanted,
            cgroup="cgroup" in wanted or self.by == "cgroup",
            program="program" in wanted or self.by == "program",
            start=self.options["interval"] is not None,
        )

    def _named(self, survey: Survey) -> Survey:
        if not self.options["numeric"]:
            return survey
        return replace(survey, processes=tuple(replace(p, user=str(p.uid)) for p in survey.processes))

    def _view(self, survey: Survey, rows: tuple[Row, ...], seconds: float | None) -> PsView:
        meminfo = read_meminfo(self.source)
        base = self.options["percent_of"]
        view = PsView(
            self.by,
            self.clock.now(),
            rows,
            total_row(rows, sum(bool(p.parts) for p in survey.processes) if self.by in BY_PART else None),
            survey,
            seconds=seconds,
            memory=_parse_size(base) if base is not None else meminfo.get("MemTotal"),
            swap=meminfo.get("SwapTotal"),
        )
        key = sort_key(self.by, self.sort, view)
        return view.arranged(key, reverse=self.options["reverse"], top=self.options["top"])

    def _renderer(self, view: PsView) -> Render:
        options = self.options
        if options["as_json"]:
            return lambda file: write_ps_json(view, file)
        header, totals = not options["no_header"], options["totals"]
        if options["as_csv"]:
            return lambda file: write_ps_csv(view, self.columns, file, header=header, totals=totals)
        style = PsStyle(
            self.columns,
            fixed=options["columns"] is not None,
            unit=options["unit"],
            percent=options["percent"] or options["percent_of"] is not None,
            header=header,
            totals=totals,
            bars=self._bar_column() if options["bars"] else None,
            hint="run as root to see them" if self.live and os.geteuid() else "",
        )
        return lambda file: write_lines(ps_lines(view, style, page_for(file, cut_in_pipe=False)), file)

    def _bar_column(self) -> PsColumn:
        return self.sort if self.sort.kind in ("size", "swap", "growth") else COLUMNS[self.by]["pss"]

    def _system(self) -> Render:
        system = system_memory(read_meminfo(self.source), *read_iomem(self.source))
        if system is None:
            raise MemtraceError("/proc/meminfo lacks the fields that this view rests on")
        self.pictures[:] = [Picture("Memory of the machine", tuple(system_chart_rows(system)), ("used",))]
        options, header, time_ = self.options, not self.options["no_header"], self.clock.now()
        if options["as_json"]:
            return lambda file: write_system_json(system, time_, file)
        if options["as_csv"]:
            return lambda file: write_system_csv(system, file, header=header)
        base = _parse_size(options["percent_of"]) if options["percent_of"] else system.total

        def render(file: TextIO) -> None:
            lines = system_lines(
                system,
                page_for(file, cut_in_pipe=True),
                unit=options["unit"],
                base=base if options["percent"] or options["percent_of"] else None,
                header=header,
                totals=options["totals"],
                bars=options["bars"],
            )
            write_lines(lines, file)

        return render

    def _explain_missing(self, view: PsView) -> None:
        """Say why a process that was named is not there; raises MemtraceError where there is nothing at all."""
        shown = {process.pid for process in view.survey.processes}
        reasons = [_why_missing(self.source, pid, self.selection) for pid in sorted(self.selection.pids - shown)]
        if not view.rows:
            named_only = reasons and not (self.selection.process or self.selection.mapping or self.selection.user)
            cause = "; ".join(reasons) if named_only else self._nothing(view)
            raise TargetError(cause, None if named_only else "try a wider pattern; patterns are regular expressions")
        for reason in reasons:
            self.say(reason)

    def _nothing(self, view: PsView) -> str:
        unreadable = view.survey.unreadable
        refused = f"{plural(len(unreadable), 'process', 'es')} could not be read" if unreadable else ""
        if view.survey.processes and refused:
            return f"{refused}: {unreadable[0].refusal}"
        return f"nothing matches {self.selection.in_words()}" + (f"; {refused}" if refused else "")


def _by(options: Mapping[str, Any]) -> By:
    asked = [options["by"]] if options["by"] else []
    asked += ["mapping"] if options["by_mapping"] else []
    asked += ["user"] if options["by_user"] else []
    if len(set(asked)) > 1:
        raise UsageError(f"by {' and by '.join(asked)}: a row can be only one of them", "choose one")
    if options["system"]:
        unfit = [name for name in _NOT_WITH_SYSTEM if options[name]]
        if unfit:
            name = "--" + {"by_mapping": "by", "by_user": "by", "pids": "pid"}.get(unfit[0], unfit[0])
            raise UsageError(f"--system shows the whole machine: {name} has no meaning there", f"leave {name} out")
    return cast(By, asked[0]) if asked else "process"


def _selection(options: Mapping[str, Any], source: ProcSource, live: bool) -> Selection:
    patterns = {
        name: pattern(options[name], f"--{name}") if options[name] is not None else None
        for name in ("process", "mapping", "user")
    }
    return Selection(
        pids=frozenset((*options["pids"], *options["more_pids"])),
        itself=frozenset({os.getpid()}) if live else frozenset(),
        wrappers=own_wrappers(source, sys.argv[1:]) if live and patterns["process"] else frozenset(),
        **patterns,
    )


def _open_capture(path: Path) -> ProcSource:
    from tracer.procfs.capture import CaptureSource

    return CaptureSource(path)


def _parse_size(text: str) -> int:
    """Bytes of ``16G``, ``1.5 GiB``, ``512M``, ``1000000``; raises UsageError."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * (1 << _POWERS[found[2].upper()])) if found else 0
    if size <= 0:
        raise UsageError(f"--percent-of: {text!r} is no size", "give one such as 16G or 512M")
    return size


def _why_missing(source: ProcSource, pid: int, selection: Selection) -> str:
    if pid in selection.itself:
        return f"process {pid} is memtrace itself, which is left out"
    try:
        status = parse_status(source.read(pid, "status"))
    except TargetError:
        return f"there is no process {pid}"
    except MemtraceError as error:
        return error.cause
    if status.tgid not in (0, pid):
        return f"{pid} is a thread of process {status.tgid}"
    if not status.vm_size:
        return f"process {pid} ({status.name}) has no memory: it is a kernel thread or a zombie"
    return f"process {pid} ({status.name}) does not match"
