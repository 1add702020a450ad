"""Chromium without a window, driven by real input events (Debian: chromium, chromium-driver; Python: selenium)."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM, DRIVER = "chromium", "chromedriver"
# Keys that type no letter, as the WebDriver standard writes them.
ESCAPE, ENTER, HOME, LEFT, RIGHT, DOWN = "\ue00c", "\ue007", "\ue011", "\ue012", "\ue014", "\ue015"
# A fresh profile, nothing in the background, nothing asked of any server.
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
)


def why_not() -> str | None:
    """What is missing, or None."""
    for program, package in ((CHROMIUM, "chromium"), (DRIVER, "chromium-driver")):
        if shutil.which(program) is None:
            return f"needs {program} (Debian: {package})"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "needs selenium (pip install -e '.[dev]')"
    return None


class Browser:
    """One browser with one page; it ends with the ``with`` block."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        self._profile = tempfile.TemporaryDirectory(prefix="memtrace-browser-", ignore_cleanup_errors=True)
        options = ChromeOptions()
        options.binary_location = shutil.which(CHROMIUM) or CHROMIUM
        for flag in (*_FLAGS, f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = Service(shutil.which(DRIVER) or DRIVER, log_output=subprocess.DEVNULL)
        self.driver: Any = Chrome(options=options, service=service)
        self.resize(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove its profile."""
        self.driver.quit()
        self._profile.cleanup()

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file anew; returns when its script has run."""
        self.driver.get("about:blank")
        self.requests()
        self.driver.get(path.resolve().as_uri() + fragment)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Type at whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def point(self, selector: str, right: int, down: int, *, click: bool = False) -> None:
        """Move the pointer to so many pixels from the middle of an element, and click there if wanted."""
        from selenium.webdriver import ActionChains

        element = self.driver.find_element("css selector", selector)
        moved = ActionChains(self.driver, duration=0).move_to_element_with_offset(element, right, down)
        (moved.click() if click else moved).perform()

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page in CSS pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def prefer(self, scheme: str) -> None:
        """What the system asks for: ``light`` or ``dark``."""
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def requests(self) -> list[str]:
        """What was asked for since the last call, but for the page itself and what is within it."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if not url.startswith(("data:", "about:", "file:"))] + [
            url for url in found if url.startswith("file:")
        ][1:]

    def console(self) -> list[str]:
        """What the page or the browser complained of since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A picture of what is in sight, or of the whole page."""
        picture = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def pdf(self) -> bytes:
        """The page as it is printed, on A4."""
        printed = self.command("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(printed["data"])
