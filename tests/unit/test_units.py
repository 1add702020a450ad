from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.units import human_bytes, human_count, human_rate, human_seconds, percent, plural


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (4096, "4.0 KiB"),
        (12_897_485, "12.3 MiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**3, "1.0 GiB"),
        (-4096, "-4.0 KiB"),
        (3 * 1024**4, "3.0 TiB"),
    ],
)
def test_bytes(n: int, text: str) -> None:
    assert human_bytes(n) == text


def test_signed_bytes_show_growth_and_leave_zero_bare() -> None:
    assert [human_bytes(n, signed=True) for n in (4096, 0, -4096)] == ["+4.0 KiB", "0 B", "-4.0 KiB"]


@given(st.integers(min_value=-(2**62), max_value=2**62))
def test_bytes_are_within_half_a_last_digit(n: int) -> None:
    found = re.fullmatch(r"(-?)(\d{1,4}(?:\.\d)?) ([KMGTPE]i)?B", human_bytes(n))
    assert found
    unit = 1024 ** (" KMGTPE".index((found[3] or " ")[0]))
    assert abs(float(found[2]) * unit - abs(n)) <= 0.05001 * unit
    assert float(found[2]) < 1024


def test_rate_and_count() -> None:
    assert human_rate(1024**2 * 1.04) == "1.0 MiB/s"
    assert human_rate(-2048.0, signed=True) == "-2.0 KiB/s"
    assert human_count(40_312) == "40,312"
    assert [plural(1, "block"), plural(2, "class", "es")] == ["1 block", "2 classes"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0, "0 s"),
        (0.0001, "1 ms"),
        (0.25, "250 ms"),
        (0.9999, "1.0 s"),
        (2.5, "2.5 s"),
        (9.96, "10 s"),
        (30, "30 s"),
        (59.6, "1 min"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3599.7, "1 h"),
        (3_780, "1 h 3 min"),
        (86_399, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0.917, 1.0, "91.7 %"),
        (1, 3, "33.3 %"),
        (0, 5, "0.0 %"),
        (1, 100_000, "<0.1 %"),
        (-1, 100_000, "-<0.1 %"),
        (-3, 100, "-3.0 %"),
        (5, 0, "-"),
    ],
)
def test_percent(part: float, whole: float, text: str) -> None:
    assert percent(part, whole) == text
