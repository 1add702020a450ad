"""``memtrace ps``: the memory of all processes, one by one, in groups, or of the whole machine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from tracer.cli.charting import ChartFile, chart_option
from tracer.cli.params import Pid, Seconds

if TYPE_CHECKING:
    from tracer.ps import Picture, PsRun

_BYS = ("process", "mapping", "user", "class", "cgroup", "program")


@click.command(
    epilog="Examples:  memtrace ps -t    memtrace ps --by user    memtrace ps -P redis -i 10    memtrace ps -w"
)
@click.argument("pids", metavar="[PID]...", type=Pid(), nargs=-1)
@click.option("--by", type=click.Choice(_BYS), help="What a row is.  [default: process]")
@click.option("-m", "by_mapping", is_flag=True, help="The same as --by mapping.")
@click.option("-u", "by_user", is_flag=True, help="The same as --by user.")
@click.option("-w", "--system", is_flag=True, help="The whole machine: kernel, page cache, userspace, free.")
@click.option("--pid", "more_pids", type=Pid(), multiple=True, metavar="PID", help="Only this process (repeatable).")
@click.option("-P", "--process", metavar="REGEX", help="Only processes whose name or command line matches.")
@click.option("-M", "--mapping", metavar="REGEX", help="Count only mappings whose name matches.")
@click.option("-U", "--user", metavar="REGEX", help="Only processes of users whose name matches.")
@click.option("-c", "--columns", metavar="NAMES", help="Columns, separated by commas; -c help lists them.")
@click.option("-s", "--sort", metavar="NAME", help="Sort by this column.  [default: pss; with -i: dpss]")
@click.option("-r", "--reverse", is_flag=True, help="Largest first; else last, next to the prompt.")
@click.option("-n", "--top", type=click.IntRange(min=1), metavar="N", help="Only the N largest rows.")
@click.option("-t", "--totals", is_flag=True, help="Add a line with the sums.")
@click.option("-p", "--percent", is_flag=True, help="Sizes as shares of the machine's memory (swap: of its swap).")
@click.option("-R", "--percent-of", metavar="SIZE", help="Shares of SIZE, such as 16G, instead.")
@click.option("--unit", type=click.Choice(("auto", "b", "k", "m", "g")), default="auto", help="Unit of all sizes.")
@click.option("--bars", is_flag=True, help="Draw a bar for each row, and its share of all.")
@click.option("-H", "--no-header", is_flag=True, help="Rows only.")
@click.option("--numeric", is_flag=True, help="Users by number.")
@click.option("-i", "--interval", type=Seconds(min=0.1), metavar="SECONDS", help="Look twice, and show the growth.")
@click.option(
    "--count", type=click.IntRange(min=0), metavar="N", help="With -i: N tables; 0 until Ctrl-C.  [default: 1]"
)
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values, sizes in bytes.")
@click.option("--json", "as_json", is_flag=True, help="JSON (schema memtrace-ps/1), sizes in bytes.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE, not to stdout.")
@chart_option("the rows")
@click.option(
    "--chart-kind", type=click.Choice(("bar", "pie")), default="bar", show_default=True, help="Bars, or shares of PSS."
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--from", "source", type=click.Path(path_type=Path), metavar="FILE", help="Read a capture, not this machine."
)
def ps(**options: Any) -> None:
    """How much memory processes take: swap, USS, PSS, RSS and VSS, the largest last.

    Without root, other users' processes show what everybody may see of them (RSS, VSS), and are counted. memtrace
    itself is left out. K, M and G are KiB, MiB and GiB.

    Exit status: 0 something was shown, 1 nothing matches or nothing could be read, 2 usage.
    """
    from tracer.ps import PsRun

    run = PsRun.from_options(options, _say)
    with ExitStack() as stack:
        chart = None
        if options["chart"] is not None:
            chart = stack.enter_context(ChartFile(options["chart"], force=options["force"]))
        _write(run, options)
        if chart is not None and run.pictures:
            _draw(chart, run.pictures[-1], options["chart_kind"])


def _write(run: PsRun, options: dict[str, Any]) -> None:
    from tracer.cli.output import ReportFile, write_to_stdout

    file = ReportFile(options["output"], force=options["force"]) if options["output"] else None
    try:
        if file is None:
            for render in run.views():
                write_to_stdout(render)
            return

        def render_all(out: TextIO) -> None:
            for render in run.views():
                render(out)

        file.write(render_all)
    finally:
        if file is not None:
            file.discard()


def _draw(chart: ChartFile, picture: Picture, kind: str) -> None:
    from tracer.report.charts import ChartRow, draw_bars, draw_shares

    rows = [ChartRow(label, values) for label, values in picture.rows]
    if kind == "pie":
        chart.draw(draw_shares, rows, title=picture.title)
    else:
        chart.draw(draw_bars, rows, title=picture.title, series=picture.series)


def _say(line: str) -> None:
    from tracer.report.safe import printable

    click.echo(f"memtrace: {printable(line)}", err=True)
