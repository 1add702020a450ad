"""A Prometheus that scrapes one address every second, and answers queries."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bpf.harness import HarnessError, wait_for

_CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 900ms}}
scrape_configs:
- job_name: memtrace
  static_configs: [{{targets: ['{target}']}}]
"""


def free_port() -> int:
    """A port of localhost on which nothing listens now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Prometheus:
    """Runs while entered; `program` is the server's binary, `target` host and port."""

    def __init__(self, program: Path, target: str, directory: Path) -> None:
        config = directory / "prometheus.yml"
        config.write_text(_CONFIG.format(target=target))
        self._address = f"127.0.0.1:{free_port()}"
        self._log = directory / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address={self._address}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
            )

    def __enter__(self) -> Self:
        try:
            wait_for(self._is_ready, "Prometheus ready")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def query(self, expression: str) -> dict[str, float]:
        """The value of an instant query for each value of the label `site` ("" where it has none)."""
        url = f"http://{self._address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return {row["metric"].get("site", ""): float(row["value"][1]) for row in result}

    def wait_for_samples(self, metric: str, count: int, deadline: float) -> None:
        """Returns once this many scrapes have brought a metric."""
        expression = f"max(count_over_time({metric}[10m]))"
        wait_for(lambda: self.query(expression).get("", 0) >= count, f"{count} scrapes of {metric}", deadline)

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise HarnessError(f"Prometheus ended: {self._log.read_text(errors='replace')}")
        with suppress(OSError), urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=1) as answer:
            return bool(answer.status == 200)
        return False
