"""Pictures: whatever the data, a file that is whole, deterministic, and in which foreign text does nothing."""

from __future__ import annotations

import io
import math
import os
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.watches import GIB, KIB, MIB
from tracer.cli.charting import ChartFile
from tracer.errors import MissingDependencyError, UsageError
from tracer.report import canvas
from tracer.report.axes import byte_ticks, time_ticks
from tracer.report.charts import ChartRow, draw_bars, draw_growth, draw_shares

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "$\\frac{1}{0}$ mathtext",
    "<script>alert(1)</script>",
    "\x1b[31mred\x1b[0m\n\x00",
    "漢字 ü ñ \u202e rtl",
    "x" * 4096,
    "_nolegend_",
    "",
    'a & b "q" \']]>',
    "\udcff bytes",
    "other (3)",
    "%s {0} \\n $",
)
ROWS = [ChartRow(f"{100 + index} program-{index}", (index * MIB, index * 3 * MIB)) for index in range(1, 40)]
TIMES = [float(second) for second in range(30)]
SERIES = {"heap": [GIB + second * MIB for second in range(30)], "file": [5 * MIB] * 30}

Draw = Callable[..., None]
DRAWINGS: list[tuple[Draw, tuple[Any, ...], dict[str, Any]]] = [
    (draw_bars, (ROWS,), {"series": ("USS", "RSS")}),
    (draw_bars, ([ChartRow(row.label, row.values[:1]) for row in ROWS],), {}),
    (draw_shares, (ROWS,), {}),
    (draw_growth, (TIMES, SERIES), {}),
]
IDS = ["bars", "one series", "shares", "growth"]


def picture(draw: Draw, *data: Any, form: str = "svg", title: str = "a title", **options: Any) -> bytes:
    file = io.BytesIO()
    draw(*data, file, form=form, title=title, **options)
    return file.getvalue()


def texts(svg: bytes) -> list[str]:
    """What is written in the picture."""
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def size_of_png(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.rstrip().endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize(("draw", "data", "options"), DRAWINGS, ids=IDS)
class TestEvery:
    def test_a_png_is_1000_pixels_wide(self, draw: Draw, data: tuple[Any, ...], options: dict[str, Any]) -> None:
        width, height = size_of_png(picture(draw, *data, form="png", **options))
        assert width == 1000 and 300 < height < 2500

    def test_the_same_data_is_the_same_picture(
        self, draw: Draw, data: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        for form in ("svg", "png"):
            one, other = (picture(draw, *data, form=form, **options) for _ in range(2))
            assert one == other
            assert b"matplotlib.org" not in one and b"<dc:date>" not in one

    def test_title_and_note(self, draw: Draw, data: tuple[Any, ...], options: dict[str, Any]) -> None:
        shown = texts(picture(draw, *data, title="process 7  redis", note="it grew", **options))
        assert "process 7  redis" in shown and "it grew" in shown

    def test_hostile_text_is_only_text(self, draw: Draw, data: tuple[Any, ...], options: dict[str, Any]) -> None:
        for text in HOSTILE:
            svg = picture(draw, *data, title=text, note=text, **options)
            assert b"<script" not in svg and b"\x1b" not in svg
            assert all(shown.isprintable() for shown in texts(svg))


HOSTILE_ROWS = [ChartRow(label, (MIB * (index + 1),)) for index, label in enumerate(HOSTILE)]


class TestHostileLabels:
    @pytest.mark.parametrize("form", ["svg", "png"])
    def test_in_all_charts(self, form: str) -> None:
        for draw in (draw_bars, draw_shares):
            assert picture(draw, HOSTILE_ROWS, form=form, top=20)
        series = {label: [MIB, (index + 2) * MIB] for index, label in enumerate(HOSTILE)}
        assert picture(draw_growth, [0.0, 1.0], series, form=form, top=20)

    def test_they_are_all_there_as_they_are(self) -> None:
        shown = texts(picture(draw_bars, HOSTILE_ROWS, top=20))
        for text in (
            "$\\frac{1}{0}$ mathtext",
            "<script>alert(1)</script>",
            "(no name)",
            "\\xff bytes",
            "%s {0} \\n $",
        ):
            assert text in shown
        assert "\\x1b[31mred\\x1b[0m\\n\\x00" in shown
        long = next(text for text in shown if text.startswith("xxx"))
        assert "\N{HORIZONTAL ELLIPSIS}" in long and len(long) < 60

    def test_series_whose_name_matplotlib_would_leave_out(self) -> None:
        rows = [ChartRow("a", (1, 2))]
        assert {"_one", "_two"} <= {text.strip() for text in texts(picture(draw_bars, rows, series=("_one", "_two")))}
        shown = texts(picture(draw_growth, [0.0, 1.0], {"_x": [0, MIB], "y": [MIB, MIB]}))
        assert any(text.strip() == "_x  +1.0 MiB" for text in shown)

    @pytest.mark.filterwarnings("ignore:Glyph")
    def test_characters_that_the_font_lacks_are_escaped_where_they_are_drawn(self) -> None:
        assert canvas.Lettering("png").label("漢 ü") == "\\u6f22 ü"
        assert canvas.Lettering("svg").label("漢 ü") == "漢 ü"

    @given(st.text(max_size=300), st.integers(30, 900))
    @settings(max_examples=60, deadline=None)
    def test_any_label_fits_its_room(self, text: str, pixels: int) -> None:
        letters = canvas.Lettering("png")
        shown = letters.label(text, pixels)
        assert shown.isprintable()
        assert letters._width(shown, 10.0) <= pixels


class TestBars:
    def test_largest_first_and_the_rest_in_one(self) -> None:
        shown = texts(picture(draw_bars, ROWS, series=("USS", "RSS"), top=5))
        assert next(text for text in shown if "program" in text) == "139 program-39"
        assert "other (34)" in shown and "134 program-34" not in shown
        assert f"{sum(range(1, 35)) * 3 / 1024:.1f} GiB" in shown, "with its sum"
        assert {"USS", "RSS"} <= set(shown)

    def test_one_more_than_the_top_is_shown_itself(self) -> None:
        shown = texts(picture(draw_bars, ROWS[:6], series=("USS", "RSS"), top=5))
        assert not any(text.startswith("other") for text in shown)

    def test_a_series_of_nothing_is_left_out(self) -> None:
        rows = [ChartRow("a", (0, MIB, 2 * MIB))]
        assert "swap" not in texts(picture(draw_bars, rows, series=("swap", "PSS", "RSS")))

    def test_units(self) -> None:
        shown = texts(picture(draw_bars, [ChartRow("a", (90 * MIB,)), ChartRow("b", (3 * KIB,))]))
        assert {"0", "20 MiB", "80 MiB", "90.0 MiB", "3.0 KiB"} <= set(shown)

    @pytest.mark.parametrize("rows", [[], [ChartRow("a", (0,))], [ChartRow("a", (1 << 62,))], [ChartRow("a", (-5,))]])
    def test_extremes(self, rows: list[ChartRow]) -> None:
        assert size_of_png(picture(draw_bars, rows, form="png"))[0] == 1000

    def test_nothing_says_so(self) -> None:
        for drawing in (picture(draw_bars, []), picture(draw_shares, []), picture(draw_growth, [], {})):
            assert "nothing to show" in texts(drawing)


class TestShares:
    def test_names_sizes_and_shares(self) -> None:
        shown = texts(
            picture(draw_shares, [ChartRow("a", (75 * MIB,)), ChartRow("b", (25 * MIB,)), ChartRow("c", (0,))])
        )
        assert {"a", "75.0 MiB", "75.0 %", "b", "25.0 %", "100.0 MiB"} <= set(shown)
        assert "c" not in shown

    def test_more_parts_than_colours(self) -> None:
        shown = texts(picture(draw_shares, ROWS, top=30))
        assert "139 program-39" in shown and "other (9)" in shown


class TestGrowth:
    def test_what_grew_by_how_much(self) -> None:
        shown = texts(picture(draw_growth, TIMES, SERIES))
        assert {"heap  +29.0 MiB", "total  +29.0 MiB", "time (s)", "growth since the start"} <= set(shown)

    def test_small_series_that_stay_the_same_are_gathered(self) -> None:
        series = {**SERIES, **{name: [4 * KIB] * 30 for name in ("stack", "kernel", "jit")}}
        shown = texts(picture(draw_growth, TIMES, series))
        assert any(text.startswith("other (4)") for text in shown), "file, too, is less than a hundredth"

    def test_what_shrinks(self) -> None:
        shown = texts(picture(draw_growth, [0.0, 60.0], {"heap": [9 * MIB, MIB], "file": [MIB, 4 * MIB]}))
        assert {"heap  -8.0 MiB", "file  +3.0 MiB", "total  -5.0 MiB"} <= set(shown)

    def test_one_look_is_no_growth(self) -> None:
        assert "nothing to show" in texts(picture(draw_growth, [0.0], {"heap": [MIB]}))


class TestTicks:
    @pytest.mark.parametrize(
        ("low", "high", "labels"),
        [
            (0, 0, ["0"]),
            (0, 90 * MIB, ["0", "20 MiB", "40 MiB", "60 MiB", "80 MiB"]),
            (0, 4 * GIB, ["0", "1 GiB", "2 GiB", "3 GiB", "4 GiB"]),
            (0, 5 * GIB // 2, ["0", "0.5 GiB", "1 GiB", "1.5 GiB", "2 GiB", "2.5 GiB"]),
            (-20 * MIB, 40 * MIB, ["-20 MiB", "-10 MiB", "0", "10 MiB", "20 MiB", "30 MiB", "40 MiB"]),
            (0, 5, ["0", "1 B", "2 B", "3 B", "4 B", "5 B"]),
        ],
    )
    def test_bytes(self, low: int, high: int, labels: list[str]) -> None:
        assert byte_ticks(low, high).labels == labels

    @given(st.integers(-(1 << 62), 0), st.integers(0, 1 << 62), st.integers(2, 8))
    def test_bytes_of_any_size(self, low: int, high: int, most: int) -> None:
        ticks = byte_ticks(low, high, most)
        assert 1 <= len(ticks.places) <= most + 2
        assert 0 in ticks.places
        assert all(low * 1.0001 - 1 <= place <= high * 1.0001 + 1 for place in ticks.places)
        assert len(set(ticks.labels)) == len(ticks.labels) == len(ticks.places)

    @pytest.mark.parametrize(
        ("seconds", "unit", "labels"),
        [
            (0.0, "s", ["0"]),
            (1.0, "s", ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
            (12.0, "s", ["0", "2", "4", "6", "8", "10", "12"]),
            (60.0, "s", ["0", "10", "20", "30", "40", "50", "60"]),
            (600.0, "min", ["0", "2", "4", "6", "8", "10"]),
            (86_400.0, "h", ["0", "3", "6", "9", "12", "15", "18", "21", "24"]),
            (30 * 86_400.0, "d", ["0", "5", "10", "15", "20", "25", "30"]),
        ],
    )
    def test_times(self, seconds: float, unit: str, labels: list[str]) -> None:
        ticks = time_ticks(seconds)
        assert (ticks.unit, ticks.labels) == (unit, labels)

    @given(st.floats(0, 1e11))
    def test_times_of_any_length(self, seconds: float) -> None:
        ticks = time_ticks(seconds)
        assert 1 <= len(ticks.places) <= 10
        assert all(0 <= place <= seconds * 1.0001 + 1e-6 for place in ticks.places)
        assert all(math.isfinite(place) for place in ticks.places)


class TestFile:
    def test_it_is_there_when_it_is_drawn(self, tmp_path: Path) -> None:
        path = tmp_path / "chart.PNG"
        with ChartFile(path, force=False) as chart:
            assert not path.exists()
            chart.draw(draw_shares, ROWS, title="x")
        assert size_of_png(path.read_bytes())[0] == 1000
        assert os.listdir(tmp_path) == ["chart.PNG"]

    def test_one_that_was_not_drawn_leaves_no_trace(self, tmp_path: Path) -> None:
        with ChartFile(tmp_path / "chart.svg", force=False):
            pass
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("name", ["chart", "chart.pdf", "chart.svgz", ".svg"])
    def test_other_forms_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match=r"\.svg or a \.png"):
            ChartFile(tmp_path / name, force=False)

    def test_an_existing_file_is_replaced_only_by_force(self, tmp_path: Path) -> None:
        path = tmp_path / "chart.svg"
        path.write_text("mine")
        with pytest.raises(UsageError, match="exists"):
            ChartFile(path, force=False)
        with ChartFile(path, force=True) as chart:
            chart.draw(draw_bars, ROWS, title="x", series=("USS", "RSS"))
        assert texts(path.read_bytes())

    def test_without_matplotlib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(canvas, "find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError) as error:
            ChartFile(tmp_path / "chart.svg", force=False)
        assert error.value.fix is not None and "pip install 'matplotlib>=3.6'" in error.value.fix


def test_a_matplotlib_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingDependencyError, match="does not work"):
        picture(draw_shares, ROWS)


def test_no_display_no_settings_and_no_words_of_matplotlibs(tmp_path: Path) -> None:
    """As on a server: no home to write to, a backend that needs a display, and settings of one's own."""
    code = (
        "import io, sys\n"
        "from tracer.report.charts import ChartRow, draw_bars\n"
        "file = io.BytesIO()\n"
        "draw_bars([ChartRow('$x^2$ \\u6f22', (5,))], file, form='png', title='t')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "sys.stdout.buffer.write(file.getvalue())\n"
    )
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: TkAgg\nsavefig.dpi: 10\n")
    environment = {
        **os.environ,
        "MPLBACKEND": "TkAgg",
        "MATPLOTLIBRC": str(tmp_path),
        "HOME": str(tmp_path / "matplotlibrc"),
    }
    environment.pop("DISPLAY", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert size_of_png(done.stdout)[0] == 1000
