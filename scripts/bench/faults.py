"""What the RSS source costs: CPU time of a touched fresh page, untraced and traced, alternating in one run.

Usage (as root, after scripts/setup --dev):  .venv/bin/python -m scripts.bench.faults [--runs N] [--depth N] [OPTION...]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tests.bpf.harness import Memtrace, Target
from tests.targets.build import command
from tracer.procfs.status import cpu_seconds


def page_ns(target: Target, seconds: float) -> float:
    """CPU nanoseconds of the target for each page, over a while."""
    pages, spent = target.command("c")["pages"], cpu_seconds(target.pid)
    time.sleep(seconds)
    more, later = target.command("c")["pages"], cpu_seconds(target.pid)
    return (later - spent) / (more - pages) * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--depth", type=int, default=8, help="frames above the one that touches the pages")
    arguments, options = parser.parse_known_args()
    plain: list[float] = []
    traced: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        target_command = command("touch", Path(directory), arguments.depth)
        with Target(target_command) as target:
            for _ in range(arguments.runs):
                plain.append(page_ns(target, arguments.seconds))
                tracing = Memtrace(target.pid, *options)
                traced.append(page_ns(target, arguments.seconds))
                tracing.stop()
    ratio = statistics.median(t / p for t, p in zip(traced, plain, strict=True))
    print("| untraced | traced | ratio (median of pairs) |\n|---|---|---|")
    print(f"| {statistics.median(plain):,.0f} ns | {statistics.median(traced):,.0f} ns | {ratio:.2f} |")


if __name__ == "__main__":
    main()
