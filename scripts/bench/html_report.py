"""How long the HTML report of many stacks takes: to write, and for Chromium to load and draw.

Usage (after scripts/setup --dev):  .venv/bin/python -m scripts.bench.html_report [--stacks N] [--runs N]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.browser.big import big_report
from tests.browser.chromium import Browser
from tracer.report.html import write_html

# From the start of the navigation to the frame after the script has drawn.
DRAWN = """
const done = arguments[0];
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())));
"""
# An act on the page, up to the frame after it.
ACT = """
const done = arguments[arguments.length - 1];
const began = performance.now();
const control = document.getElementById(arguments[0]);
if (arguments[1] === null) control.click(); else control.value = arguments[1];
control.dispatchEvent(new Event(arguments[2]));
requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
"""
ACTS = {
    "invert": ("order", "1", "change"),
    "back to callers first": ("order", "0", "change"),
    "another metric": ("metric", "count", "change"),
    "colour by kind": ("colour", "kind", "change"),
    "search, a regular expression": ("search", "method_1.*2", "input"),
    "filter the table of stacks": ("stacks-filter", "method_77", "input"),
}


def measure(browser: Browser, page: Path) -> dict[str, float]:
    """Milliseconds of each step."""
    browser.open(page)
    found: dict[str, Any] = {"load and draw": browser.driver.execute_async_script(DRAWN)}
    for name, act in ACTS.items():
        found[name] = browser.driver.execute_async_script(ACT, *act)
    return {name: float(value) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", type=int, default=77_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    report = big_report(options.stacks)
    with tempfile.TemporaryDirectory() as directory, Browser() as browser:
        page = Path(directory, "report.html")
        began = time.perf_counter()
        with page.open("w", encoding="utf-8") as file:
            write_html(report, file)
        written = time.perf_counter() - began
        runs = [measure(browser, page) for _ in range(options.runs)]
        print(f"{options.stacks:,} stacks, {page.stat().st_size / 2**20:.1f} MiB, written in {written:.1f} s\n")
    print("| what | median | worst |\n|---|---|---|")
    for name in runs[0]:
        times = [run[name] for run in runs]
        print(f"| {name} | {statistics.median(times):,.0f} ms | {max(times):,.0f} ms |")


if __name__ == "__main__":
    main()
