"""``memtrace diff A B``: what has changed between two recorded sessions, or two parts of one."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracer.cli.threshold import check, fail_above

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from tracer.report.comparison import Comparison, Measured

_MOMENT = "MOMENT"


@click.command()
@click.argument("a", type=click.Path(path_type=Path, readable=False))
@click.argument("b", type=click.Path(path_type=Path, readable=False), required=False)
@click.option("--a-from", metavar=_MOMENT, help="Of A only what is after: 90, 1.5min, 14:03:22, -30s from the end.")
@click.option("--a-to", metavar=_MOMENT, help="Of A only what is before.")
@click.option("--b-from", metavar=_MOMENT, help="Of B only what is after.")
@click.option("--b-to", metavar=_MOMENT, help="Of B only what is before.")
@click.option(
    "-n", "--top", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Stacks shown."
)
@click.option("--allocator-frames", is_flag=True, help="Show the allocator's own frames at the top of stacks, too.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON (schema memtrace-diff/1).")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it to FILE, not to stdout."
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@fail_above
def diff(
    a: Path,
    b: Path | None,
    a_from: str | None,
    a_to: str | None,
    b_from: str | None,
    b_to: str | None,
    top: int,
    allocator_frames: bool,
    as_json: bool,
    output: Path | None,
    force: bool,
    fail_above: float | None,
) -> int:
    """Compare the recorded sessions A (before) and B (after): which stacks and classes of memory are new, gone, grow
    faster or slower. Stacks are the same where their functions have the same names: after a restart or a rebuild, too.

    Without B, the first half of A is compared with its second; parts are chosen by --a-from, --a-to, --b-from, --b-to.

    Exit status: 0 done, 1 a file is no recording or damaged, 2 usage, 3 RSS or a stack of B grows above --fail-above.
    """
    from tracer.cli.output import ReportFile, write_to_stdout
    from tracer.report.comparison import compare

    with ExitStack() as stack:
        comparison = compare(*_sides(a, b, (a_from, a_to), (b_from, b_to)))
        render = functools.partial(
            _render, comparison, as_json=as_json, top=top, allocator_frames=allocator_frames, limit=fail_above
        )
        if output is None:
            write_to_stdout(render)
        else:
            file = ReportFile(output, force=force)
            stack.callback(file.discard)
            file.write(render)
    return check(fail_above, _rates(comparison))


def _sides(
    a: Path, b: Path | None, part_a: tuple[str | None, str | None], part_b: tuple[str | None, str | None]
) -> tuple[Measured, Measured]:
    if b is None and part_a == part_b == (None, None):
        return _side(a, None, "50%"), _side(a, "50%", None)
    return _side(a, *part_a), _side(b or a, *part_b)


def _side(path: Path, begin: str | None, end: str | None) -> Measured:
    from tracer.store.measure import measure
    from tracer.store.moments import parse_moment
    from tracer.store.recording import Recording, require_window

    with Recording(path) as recording:
        require_window(recording)
        started, last = recording.origin.started, recording.looks[-1].seconds
        assert started is not None
        moments = [None if text is None else parse_moment(text, started, last) for text in (begin, end)]
        return measure(recording, path.name, *moments)


def _render(
    comparison: Comparison, out: TextIO, *, as_json: bool, top: int, allocator_frames: bool, limit: float | None
) -> None:
    from tracer.report.diff import DiffText, write_diff_json

    if as_json:
        write_diff_json(comparison, out, limit)
    else:
        DiffText(comparison, top=top, allocator_frames=allocator_frames).render(out, colour=out.isatty())


def _rates(comparison: Comparison) -> Iterator[tuple[str, float]]:
    """How fast RSS and each stack grow in B."""
    from tracer.report.frames import label

    yield "RSS", comparison.rss.b.mean
    for each in comparison.stacks:
        yield label(each.example.frames, 2, "...") or each.name[0], each.change.b.mean
