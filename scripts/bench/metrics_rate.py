"""Whether deriv() of memtrace's metrics in a Prometheus is the rate at which a program leaks.

    sudo .venv/bin/python -m scripts.bench.metrics_rate [--scrapes N]      (scripts/tools fetches Prometheus)

Prints a line for each run, and exits with 1 if one is off by 5 % or more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.bpf.harness import Target
from tests.bpf.leak_rate import measure_leak_rate
from tests.targets.build import command
from tests.tools import find_tool
from tracer.units import human_rate

ALLOWED = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scrapes", type=int, default=60, metavar="N", help="scrapes that deriv() is taken over")
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    prometheus = find_tool("prometheus")
    if prometheus is None:
        parser.error("no Prometheus here: run scripts/tools")
    worst = 0.0
    print("| seconds | planted | deriv() | error |\n|---|---|---|---|")
    for _ in range(options.runs):
        with ExitStack() as running:
            scratch = Path(running.enter_context(tempfile.TemporaryDirectory()))

            def start(name: str, *arguments: str, scratch: Path = scratch, running: ExitStack = running) -> Target:
                return running.enter_context(Target(command(name, scratch, *arguments)))

            rate = measure_leak_rate(start, prometheus, scratch, options.scrapes)
        worst = max(worst, abs(rate.error))
        figures = (
            f"{rate.seconds:.0f}",
            human_rate(rate.planted),
            human_rate(rate.measured),
            f"{100 * rate.error:+.2f} %",
        )
        print(f"| {' | '.join(figures)} |", flush=True)
    return int(worst >= ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
