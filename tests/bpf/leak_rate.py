"""The rate of a planted leak, as the program itself counts it and as Prometheus finds it in memtrace's metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bpf.harness import Memtrace, Target
from tests.bpf.prometheus import Prometheus, free_port

_LEAKS = ("store_attributes", "session_create")


@dataclass(frozen=True, slots=True)
class LeakRate:
    """Bytes per second: what the program leaked, and what `deriv()` says; `seconds` is the distance of its looks."""

    planted: float
    measured: float
    seconds: float

    @property
    def error(self) -> float:
        """The difference as a share of what was planted."""
        return self.measured / self.planted - 1


def measure_leak_rate(
    start: Callable[..., Target], prometheus: Path, directory: Path, scrapes: int, interval: float = 1.0
) -> LeakRate:
    """Trace the leaky server, have Prometheus scrape memtrace so often, and compare the sessions that never end."""
    target = start("leaky-server", "--json")
    address = f"127.0.0.1:{free_port()}"
    with Memtrace(target.pid, "--metrics", address, "--interval", str(interval)) as memtrace:
        with Prometheus(prometheus, address, directory) as server:
            server.wait_for_samples("memtrace_stack_live_bytes", 3, 30)
            began, before = time.monotonic(), _leaked(target)
            server.wait_for_samples("memtrace_stack_live_bytes", 3 + scrapes, 30 + 2 * scrapes)
            seconds, after = time.monotonic() - began, _leaked(target)
            sites = "|".join(f"{name} .*" for name in _LEAKS)
            window = f"{max(5, round(seconds))}s"
            rates = server.query(f'deriv(memtrace_stack_live_bytes{{site=~"{sites}"}}[{window}])')
        memtrace.stop().required_report()
    return LeakRate((after - before) / seconds, sum(rates.values()), seconds)


def _leaked(target: Target) -> int:
    stacks = target.go()["stacks"]
    return sum(stacks[name]["bytes"] for name in _LEAKS)
