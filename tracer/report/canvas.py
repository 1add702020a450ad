"""matplotlib, kept from everything around it: no display, no settings of the user's, no words of its own on stderr.

Text is drawn as it is: no formulas between dollar signs, no control characters.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from tracer.errors import MissingDependencyError
from tracer.report.safe import Page, cells, escape, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Form = Literal["svg", "png"]
FORMS: Final = ("svg", "png")

WIDTH: Final = 10.0  # inches
DPI: Final = 100
TEXT, FAINT, GRID = "#222222", "#666666", "#dddddd"
_FONT = "DejaVu Sans"  # comes with matplotlib
_SIZE = 10.0
# Longer than any room there is.
_MOST_CHARACTERS = 400
_INSTALL = "type: pip install 'matplotlib>=3.6' (Debian: apt install python3-matplotlib)"
_SETTINGS = {
    "font.family": [_FONT, "sans-serif"],
    "font.size": _SIZE,
    "text.color": TEXT,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GRID,
    "axes.unicode_minus": True,
    "xtick.color": FAINT,
    "ytick.color": TEXT,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "svg.fonttype": "none",  # text stays text: it can be searched, and is drawn in a font that has it
    "svg.hashsalt": "memtrace",  # else identifiers in the file are random
}


def require_matplotlib() -> None:
    """Raise MissingDependencyError, with the command to type, where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("charts in files need matplotlib", _INSTALL)


class Lettering:
    """Foreign text made fit to be drawn: what acts, or what the picture's font lacks, appears as an escape."""

    def __init__(self, form: Form) -> None:
        from matplotlib.font_manager import findfont, get_font

        self._font: Any = get_font(findfont(_FONT))
        # Text in an SVG file is drawn by who shows it, in any font there.
        self._characters = self._font.get_charmap() if form == "png" else None

    def label(self, text: str, pixels: float = 0.96 * WIDTH * DPI, size: float = _SIZE) -> str:
        """``text`` in at most so many pixels, shortened in its middle; never empty."""
        if len(text) > _MOST_CHARACTERS:
            half = _MOST_CHARACTERS // 2
            text = text[:half] + text[-half:]
        shown = printable(text).strip() or "(no name)"
        if self._characters is not None and not shown.isascii():
            shown = "".join(c if ord(c) in self._characters else escape(c) for c in shown)
        # Legends leave out what begins with an underscore.
        return self._fitting(f" {shown}" if shown.startswith("_") else shown, pixels, size)

    def _fitting(self, text: str, pixels: float, size: float) -> str:
        fits, too_much = 0, cells(text) + 1
        while too_much - fits > 1:
            middle = (fits + too_much) // 2
            if self._width(_shortened(text, middle), size) <= pixels:
                fits = middle
            else:
                too_much = middle
        return _shortened(text, fits)

    def _width(self, text: str, size: float) -> float:
        self._font.clear()
        self._font.set_size(size, DPI)
        self._font.set_text(text, 0.0)
        width: int = self._font.get_width_height()[0]
        return width / 64


def _shortened(text: str, width: int) -> str:
    return Page(width).shorten(text, width, "both")


@contextmanager
def canvas(height: float, form: Form, file: BinaryIO) -> Iterator[tuple[Figure, Lettering]]:
    """A figure of WIDTH times ``height`` inches that is written to the file at the end."""
    # Where it cannot keep its cache of fonts it says so on stderr when imported: of no use to who wants a chart.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"matplotlib is installed, but does not work: {error}", _INSTALL) from error

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
        drawing = FigureCanvasAgg(figure) if form == "png" else FigureCanvasSVG(figure)
        yield figure, Lettering(form)
        # Neither date nor version: the same data is the same picture.
        metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
        drawing.print_figure(file, format=form, metadata=metadata)
