"""Charts in the terminal: they fit any width, and say the same without colour and in ASCII."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_report_text import HOSTILE
from tests.unit.watches import GIB, KIB, MIB
from tracer.report.bars import Bar, apportion, bar, bar_lines, share_lines
from tracer.report.safe import Page, cells

ROWS = (Bar("heap", 3 * GIB), Bar("anonymous", GIB), Bar("file", 40 * MIB), Bar("stack", 132 * KIB), Bar("jit", 0))


def plain(lines: list[object]) -> list[str]:
    return [line.plain for line in lines]  # type: ignore[attr-defined]


class TestBar:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [(0, ""), (-5, ""), (1, "▏"), (50, "████"), (56, "████▌"), (100, "████████"), (999, "████████")],
    )
    def test_in_eighths(self, size: int, expected: str) -> None:
        assert bar(size, 100, 8) == expected

    def test_in_ascii(self) -> None:
        assert [bar(size, 100, 8, ascii_only=True) for size in (0, 1, 50, 100)] == ["", "#", "####", "########"]

    @given(st.integers(), st.integers(), st.integers(-3, 300), st.booleans())
    def test_never_wider_than_its_room(self, size: int, largest: int, width: int, ascii_only: bool) -> None:
        assert cells(bar(size, largest, width, ascii_only=ascii_only)) <= max(0, width)


class TestBarLines:
    def test_golden(self) -> None:
        assert plain([*bar_lines(ROWS, Page(60), whole=4 * GIB)]) == [
            "heap         3.0 GiB  75.0 %  ██████████████████████████████",
            "anonymous    1.0 GiB  25.0 %  ██████████",
            "file        40.0 MiB   1.0 %  ▍",
            "stack      132.0 KiB  <0.1 %  ▏",
            "jit              0 B   0.0 %",
        ]

    def test_golden_in_ascii(self) -> None:
        assert plain([*bar_lines(ROWS[:2], Page(40, ascii_only=True))]) == [
            "heap       3.0 GiB  ####################",
            "anonymous  1.0 GiB  #######",
        ]

    def test_too_narrow_for_bars(self) -> None:
        assert plain([*bar_lines(ROWS[:1], Page(16))]) == ["heap  3.0 GiB"]

    @given(st.lists(st.builds(Bar, st.text(max_size=90), st.integers(-(1 << 50), 1 << 50))), st.integers(34, 250))
    def test_any_data_fits_any_width(self, rows: list[Bar], width: int) -> None:
        lines = bar_lines(rows, Page(width))
        assert len(lines) == len(rows)
        assert all(cells(line.plain) <= width and line.plain.isprintable() for line in lines)

    def test_hostile_labels(self) -> None:
        assert all(line.plain.isprintable() for line in bar_lines([Bar(HOSTILE, 5)], Page(200)))


class TestShareLines:
    def test_golden(self) -> None:
        assert plain([*share_lines(ROWS, Page(60), top=2)]) == [
            "█" * 44 + "▓" * 15 + "·",
            "█ heap 3.0 GiB (74.3 %)   ▓ anonymous 1.0 GiB (24.8 %)",
            "· other (2) 40.1 MiB (1.0 %)",
        ]

    def test_golden_in_ascii(self) -> None:
        assert plain([*share_lines(ROWS[:2], Page(40, ascii_only=True))]) == [
            "##############################==========",
            "# heap 3.0 GiB (75.0 %)",
            "= anonymous 1.0 GiB (25.0 %)",
        ]

    def test_nothing(self) -> None:
        assert share_lines([], Page(80)) == [] and share_lines([Bar("a", 0), Bar("b", -1)], Page(80)) == []

    @given(
        st.lists(st.builds(Bar, st.text(max_size=90), st.integers(0, 1 << 50)), min_size=1),
        st.integers(40, 250),
        st.booleans(),
    )
    def test_any_data_fits_any_width(self, rows: list[Bar], width: int, ascii_only: bool) -> None:
        lines = share_lines(rows, Page(width, ascii_only))
        assert all(cells(line.plain) <= width and line.plain.isprintable() for line in lines)
        assert not lines or cells(lines[0].plain) == width
        assert not ascii_only or all(line.plain.isascii() for line in lines)


class TestApportion:
    @given(st.lists(st.integers(0, 1 << 60), max_size=30), st.integers(0, 200))
    def test_it_adds_up_and_nothing_is_hidden(self, sizes: list[int], width: int) -> None:
        widths = apportion(sizes, width)
        there = [size for size in sizes if size]
        assert len(widths) == len(sizes)
        assert sum(widths) == (width if there else 0)
        assert all(size or not cells for size, cells in zip(sizes, widths, strict=True))
        if len(there) <= width:
            assert all(cells or not size for size, cells in zip(sizes, widths, strict=True))

    def test_in_proportion(self) -> None:
        assert apportion([50, 30, 20], 10) == [5, 3, 2]
        assert apportion([1, 1, 1], 10) == [4, 3, 3]
