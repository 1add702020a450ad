"""``memtrace maps PID...``: the VMAs of processes, classified, with every field of smaps; captures of them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from tracer.cli.maps_params import ParsedParam, ProcessParam, RegexParam

if TYPE_CHECKING:
    from tracer.maps.process import ProcessMaps
    from tracer.maps.read import Unreadable
    from tracer.maps.view import View
    from tracer.procfs.source import ProcSource
    from tracer.report.maps_text import Style

# As pmap: some process does not exist.
EXIT_NOT_FOUND = 42
EXIT_UNREADABLE = 1


_SIZE = ParsedParam("size", "parse_size")
_FILE = click.Path(path_type=Path, readable=False)  # who opens it says why it cannot


@click.command("maps")
@click.argument("pids", nargs=-1, type=ProcessParam(), metavar="PID...")
@click.option("-x", "extended", is_flag=True, help="Columns of pmap -x: size, rss, dirty.")
@click.option("-d", "device", is_flag=True, help="Columns of pmap -d: offset and device; reads no page counts.")
@click.option("-X", "more", count=True, help="Every size that the kernel tells; -XX everything it tells.")
@click.option("-c", "--columns", metavar="LIST", help="These columns, as in rss,pss,swappss,path; or @NAME, if saved.")
@click.option("--save-columns", metavar="NAME", help="Keep the list of --columns as @NAME.")
@click.option("-p", "--full-path", is_flag=True, help="Never cut a path.")
@click.option("-q", "--no-header", is_flag=True, help="Rows only: no titles, totals or remarks.")
@click.option("-k", "--kernel-names", is_flag=True, help="As in pmap; the kernel's names are always shown.")
@click.option(
    "-A",
    "--range",
    "addresses",
    type=ParsedParam("range", "parse_range"),
    metavar="LOW[,HIGH]",
    help="VMAs in a range of addresses (hexadecimal).",
)
@click.option("--class", "classes", multiple=True, metavar="NAME", help="VMAs of this class; may be repeated.")
@click.option("--path", type=RegexParam(), metavar="REGEX", help="VMAs whose path matches.")
@click.option("--perms", metavar="PERMS", help="VMAs with these permissions: letters (w), or four places (rw?p).")
@click.option("--min-size", type=_SIZE, default="0", metavar="SIZE", help="VMAs of at least this size (64K, 1.5M).")
@click.option("--min-rss", type=_SIZE, default="0", metavar="SIZE", help="VMAs with at least so much in memory.")
@click.option("--by", type=click.Choice(["class", "library", "perms"]), help="Sums by class, mapped file, permissions.")
@click.option("-s", "--sort", metavar="COLUMN", help="Sort by a column: sizes from the largest.")
@click.option("-r", "--reverse", is_flag=True, help="The other way round.")
@click.option("-n", "--top", type=click.IntRange(min=1), metavar="N", help="The first N only.")
@click.option(
    "-u",
    "--unit",
    type=click.Choice(["B", "KiB", "MiB", "GiB", "auto"]),
    default="KiB",
    show_default=True,
    help="Unit of sizes in tables.",
)
@click.option("--flags", is_flag=True, help="The flags of each VMA, and what they mean.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV: every column, or those of --columns; sizes in bytes.")
@click.option("--json", "as_json", is_flag=True, help="JSON (schema memtrace-maps/1): everything, in bytes.")
@click.option(
    "--quick/--full",
    default=None,
    help="Read page tables instead of smaps: no pss, but hardly blocks the "
    "process. Default: where smaps would take more than 1 s.",
)
@click.option(
    "--capture",
    type=_FILE,
    metavar="FILE",
    help="Keep the raw /proc files in FILE, of all processes if no PID is given; show nothing.",
)
@click.option("--from", "from_file", type=_FILE, metavar="FILE", help="Read a capture instead of this machine.")
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write to FILE, not to stdout.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def maps(pids: tuple[int, ...], **options: Any) -> int:
    """Show the VMAs of processes: size, what of it is in memory, and what it is for.

    PID may be a path such as /proc/1234. Totals are of the same reading as the rows; pss is exact where the kernel has
    smaps_rollup. Works without root for one's own processes.

    Exit status: 0 all were shown, 1 some could not be read, 42 some do not exist, 2 usage.
    """
    _check(pids, options)
    if options["capture"]:
        return _capture(pids, options)
    view = _view(options)
    if options["save_columns"]:
        from tracer.maps.profiles import save_columns

        _say(f"saved as {save_columns(options['save_columns'], list(view.columns or ()), force=options['force'])}")
        if not pids and not options["from_file"]:
            return 0
    if options["from_file"]:
        from tracer.procfs.capture import CaptureSource

        with CaptureSource(options["from_file"]) as source:
            return _show(source, pids, view, options)
    from tracer.procfs.source import LiveSource

    return _show(LiveSource(), pids, view, options)


def _check(pids: Sequence[int], options: dict[str, Any]) -> None:
    """Refuse what contradicts itself. Raises UsageError."""
    from tracer.errors import UsageError

    layouts = [name for name in ("extended", "device", "more", "columns") if options[name]]
    if len(layouts) > 1:
        raise UsageError("-x, -d, -X and --columns exclude each other", "choose one of them")
    if options["as_csv"] and options["as_json"]:
        raise UsageError("--csv and --json exclude each other", "choose one of them")
    if options["as_csv"] and options["by"]:
        raise UsageError("--by has no form as CSV", "use --json")
    if options["capture"] and options["quick"]:
        raise UsageError("--quick reads no smaps, which a capture keeps", "leave it out")
    if options["capture"] and options["from_file"]:
        raise UsageError("--capture reads this machine, --from does not", "choose one of them")
    if options["save_columns"] and not options["columns"]:
        raise UsageError("--save-columns needs --columns", "for example: --columns rss,pss,path --save-columns short")
    if not pids and not any(options[name] for name in ("capture", "from_file", "save_columns")):
        raise UsageError("no process is named", "give a process id: memtrace maps 1234")


def _view(options: dict[str, Any]) -> View:
    from tracer.maps.profiles import parse_columns
    from tracer.maps.selection import Filter, perms_test
    from tracer.maps.view import Layout, View

    low, high = options["addresses"] or (None, None)
    if options["perms"] is not None:
        perms_test(options["perms"])
    layout: Layout = "usual"
    if options["extended"] or options["device"]:
        layout = "extended" if options["extended"] else "device"
    elif options["more"]:
        layout = "most" if options["more"] == 1 else "all"
    return View(
        form="json" if options["as_json"] else "csv" if options["as_csv"] else "text",
        layout=layout,
        columns=parse_columns(options["columns"]) if options["columns"] else None,
        filter=Filter(
            options["classes"], options["path"], options["perms"], options["min_size"], options["min_rss"], low, high
        ),
        sort=options["sort"],
        reverse=options["reverse"],
        top=options["top"],
        by=options["by"],
        flags=options["flags"],
        quick=options["quick"],
    )


def _show(source: ProcSource, pids: Sequence[int], view: View, options: dict[str, Any]) -> int:
    from tracer.cli.output import ReportFile, write_to_stdout
    from tracer.errors import MemtraceError

    unreadable: list[Unreadable] = []

    def render(out: TextIO) -> None:
        processes = map(view.select, _read_all(source, pids, view, unreadable))
        _render(processes, unreadable, view, options, out)

    if options["output"] is None:
        write_to_stdout(render)
        return _exit_code(unreadable)
    file = ReportFile(options["output"], force=options["force"])
    try:
        text = io.StringIO()
        render(text)
        try:
            file.write(lambda out: print(end=text.getvalue(), file=out))
        except MemtraceError:
            write_to_stdout(lambda out: print(end=text.getvalue(), file=out))
            raise
    finally:
        file.discard()
    return _exit_code(unreadable)


def _read_all(
    source: ProcSource, pids: Sequence[int], view: View, unreadable: list[Unreadable]
) -> Iterator[ProcessMaps]:
    """The processes; the reason for each that cannot be read goes to stderr, and into the list."""
    from tracer.maps.read import Unreadable, find_target, read_process

    needs = view.needs()
    for pid in dict.fromkeys(pids) if pids else source.pids():
        target = find_target(source, pid)
        found = target if isinstance(target, Unreadable) else read_process(source, target, needs, _say)
        if not isinstance(found, Unreadable):
            yield found
        elif pids or found.why == "permission":
            _say(found.text)
            unreadable.append(found)


def _render(
    processes: Iterator[ProcessMaps], unreadable: list[Unreadable], view: View, options: dict[str, Any], out: TextIO
) -> None:
    if view.form == "csv":
        from tracer.report.maps_json import write_csv

        write_csv(processes, view.columns, out, header=not options["no_header"])
    elif view.form == "json":
        from tracer.maps.selection import groups
        from tracer.report.maps_json import write_json

        shown = ((process, view.by, groups(process, view.by) if view.by else ()) for process in processes)
        write_json(shown, unreadable, out, flags=view.flags)
    else:
        _render_text(processes, view, _style(view, options, out), out)


def _render_text(processes: Iterator[ProcessMaps], view: View, style: Style, out: TextIO) -> None:
    from tracer.maps.selection import groups
    from tracer.report.maps_text import write_groups, write_maps

    for index, process in enumerate(processes):
        if index and not style.bare:
            print(file=out)
        columns = view.columns_for(process)
        if view.by:
            write_groups(process, view.by, groups(process, view.by), columns, style, out)
        else:
            write_maps(process, columns, style, out)


def _style(view: View, options: dict[str, Any], out: TextIO) -> Style:
    import os
    import shutil

    from tracer.report.maps_text import Style

    # Into a pipe nothing is cut, unless the caller says how wide it is.
    known = out.isatty() or os.environ.get("COLUMNS", "").isdigit()
    width = shutil.get_terminal_size().columns if known and not options["full_path"] else None
    return Style(
        width=width,
        ascii_only=not (out.encoding or "utf-8").lower().startswith("utf"),  # what is kept in memory goes to a file
        unit=options["unit"],
        bare=options["no_header"],
        usual=view.layout == "usual" and view.columns is None and not view.by,
        explain_flags=view.flags,
        device_totals=view.layout == "device",
    )


def _capture(pids: Sequence[int], options: dict[str, Any]) -> int:
    from tracer.maps.capturing import write_capture
    from tracer.units import human_bytes, plural

    file: Path = options["capture"]
    done = write_capture(file, pids or None, force=options["force"], full=options["quick"] is False, tell=_say)
    for row in done.refused:
        _say(row.text)
    if done.size:
        denied = f"; of {done.denied:,} more the mappings may not be read" if done.denied and not pids else ""
        _say(f"{plural(done.processes, 'process', 'es')} captured in {file} ({human_bytes(done.size)}){denied}")
    return _exit_code(done.refused)


def _exit_code(unreadable: Sequence[Unreadable]) -> int:
    if any(row.why == "gone" for row in unreadable):
        return EXIT_NOT_FOUND
    return EXIT_UNREADABLE if unreadable else 0


def _say(line: str) -> None:
    """A line for the user on stderr."""
    from contextlib import suppress

    from tracer.report.safe import printable

    with suppress(OSError):
        print(f"memtrace: {printable(line)}", file=sys.stderr, flush=True)
