"""``--chart FILE.svg|.png``: everything that can be wrong with the file is told before the work begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tracer.cli.output import ReportFile
from tracer.errors import UsageError


def chart_option(what: str) -> Callable[[Any], Any]:
    """The option ``--chart`` of a command that draws ``what``."""
    return click.option(
        "--chart",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Draw {what} into FILE.svg or FILE.png.",
    )


class ChartFile:
    """A picture to be drawn; a context manager that leaves no trace of one that was not.

    Use: ``with ChartFile(path, force=force) as chart: ...; chart.draw(draw_bars, rows, title=...)``.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        """Raises UsageError (suffix, existing file, place) and MissingDependencyError (matplotlib)."""
        from tracer.report.canvas import FORMS, require_matplotlib

        self._form = path.suffix.lower().removeprefix(".")
        if self._form not in FORMS:
            raise UsageError(f"{path}: a chart is an .svg or a .png file", f"name it {path.stem or 'chart'}.svg")
        require_matplotlib()
        self._file = ReportFile(path, force=force, binary=True)

    def draw(self, draw: Callable[..., None], *data: Any, **options: Any) -> None:
        """Draw by one of the functions of ``tracer.report.charts``. Raises MemtraceError where the file fails."""
        self._file.write(lambda file: draw(*data, file, form=self._form, **options))

    def __enter__(self) -> ChartFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.discard()
