"""speedscope opens what memtrace writes, in a browser without a network (scripts/tools, chromium, chromium-driver)."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools import tools_dir
from tests.unit.hostile import NAMES
from tests.unit.reports import MIB, frame, sample_report, stack
from tracer.model.report import Report
from tracer.report.formats import format_of_file

pytestmark = pytest.mark.browser

SPEEDSCOPE = tools_dir() / "node_modules" / "speedscope" / "dist" / "release" / "index.html"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--enable-unsafe-swiftshader",
    "--window-size=1200,800",
)
DEADLINE = 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    missing += ["selenium"] if importlib.util.find_spec("selenium") is None else []
    missing += ["speedscope (scripts/tools)"] if not SPEEDSCOPE.exists() else []
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver"), log_output=subprocess.DEVNULL))
    yield driver
    driver.quit()


def opened(browser: Any, report: Report, directory: Path, name: str) -> dict[str, str]:
    """Opens the report in speedscope under this file name; returns its table of functions, name -> total."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    choice = format_of_file(name)
    path = directory / name
    with path.open("wb" if choice.format.binary else "w") as file:
        choice.write(report, file)
    # What speedscope's own command does: a script beside the page, which hands the file over.
    script = directory / "profile.js"
    content = base64.b64encode(path.read_bytes()).decode()
    script.write_text(f"speedscope.loadFileFromBase64({json.dumps(name)}, {json.dumps(content)})")
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(f"{SPEEDSCOPE.as_uri()}#localProfilePath={script}")
    rows = (
        "return [...document.querySelectorAll('table tr')].filter(row => row.querySelector('td'))"
        ".map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )

    def table_is_shown(page: Any) -> bool:
        if name not in page.execute_script("return document.body.innerText"):
            return False
        ActionChains(page).send_keys("3").perform()  # the sandwich view, which has a table
        return bool(page.execute_script(rows))

    WebDriverWait(browser, DEADLINE).until(table_is_shown)
    return {function: total for total, _, function in browser.execute_script(rows)}


def requests(browser: Any) -> list[str]:
    """What the page asked of any server."""
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:", "about:"))]


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("name", ["a.pb.gz", "a.folded"])
def test_speedscope_shows_bytes_in_use(browser: Any, tmp_path: Path, name: str) -> None:
    leak = stack(
        "1" * 16,
        3 * MIB,
        count=7,
        allocated_bytes=40 * MIB,
        frames=(frame("malloc"), frame("leaker"), frame(None, "/usr/bin/app", 0xA1F0), frame("main")),
    )
    small = stack("2" * 16, MIB, frames=(frame("other"), frame("main")))
    table = opened(browser, sample_report(stacks=(leak, small), ledger=()), tmp_path, name)
    assert table.keys() == {"malloc", "leaker", "app+0xa1f0", "main", "other"}
    assert "75%" in table["leaker"] and "100%" in table["main"]
    if name.endswith(".pb.gz"):
        assert "3.00 MB" in table["leaker"], "the metric is inuse_space, and its unit is known"
    assert (requests(browser), errors(browser)) == ([], [])


@pytest.mark.parametrize("name", ["h.pb.gz", "h.folded"])
def test_hostile_names_are_inert(browser: Any, tmp_path: Path, name: str) -> None:
    found = tuple(
        stack(f"{i:016x}", 320 * (i + 1), frames=(frame(each), frame("main"))) for i, each in enumerate(NAMES)
    )
    table = opened(browser, sample_report(stacks=found, ledger=()), tmp_path, name)
    assert any(text.startswith("</script>") for text in table)
    assert browser.execute_script("return document.querySelectorAll('table script').length") == 0
    assert (requests(browser), errors(browser)) == ([], [])
