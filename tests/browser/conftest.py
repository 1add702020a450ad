"""Gate and fixtures of the tests in a browser: skip where Chromium is missing.

MEMTRACE_REQUIRE_BROWSER=1 turns the skip into a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Browser, why_not
from tracer.model.report import Report
from tracer.model.timeline import Timeline
from tracer.report.html import write_html

HERE = Path(__file__).resolve().parent

Show = Callable[..., Browser]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    reason = why_not() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.browser)
        if reason is not None and os.environ.get("MEMTRACE_REQUIRE_BROWSER") != "1":
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser for all tests here: starting it takes longer than most of them. It is gone before others begin."""
    reason = why_not()
    if reason is not None:
        pytest.fail(f"MEMTRACE_REQUIRE_BROWSER=1, but: {reason}")
    with Browser() as running:
        yield running


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Show]:
    """show(report, timeline=None, fragment="") -> the browser with the report's page open.

    Fails the test if the page asked for anything, or if it or the browser complained.
    """

    def open_page(report: Report, timeline: Timeline | None = None, fragment: str = "") -> Browser:
        page = tmp_path / "report.html"
        with page.open("w", encoding="utf-8") as file:
            write_html(report, file, timeline)
        browser.open(page, fragment)
        return browser

    browser.resize(1280, 900)
    browser.prefer("light")
    browser.console()
    yield open_page
    assert browser.console() == []
    assert browser.requests() == []
