"""What tracing every allocation costs: CPU time of a malloc and free pair, and of a system call of another process.

Usage (as root, after scripts/setup --dev):  .venv/bin/python -m scripts.bench.pairs [--runs N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bpf.harness import Memtrace, Target
from tests.targets.build import command
from tracer.procfs.status import cpu_seconds

CALLS = 300_000


def pair_ns(target: Target, seconds: float = 1.0) -> float:
    """CPU nanoseconds of the target for each pair, over a while."""
    pairs, spent = target.command("c")["pairs"], cpu_seconds(target.pid)
    time.sleep(seconds)
    more, later = target.command("c")["pairs"], cpu_seconds(target.pid)
    return (later - spent) / (more - pairs) * 1e9


def call_ns() -> float:
    """Nanoseconds of a cheap system call in this process, Python's own part included."""
    getppid = os.getppid
    began = time.perf_counter_ns()
    for _ in range(CALLS):
        getppid()
    return (time.perf_counter_ns() - began) / CALLS


def median(runs: int, measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as directory, Target(command("hot", Path(directory), 1)) as target:
        rows = [("untraced", median(runs, lambda: pair_ns(target)), median(runs, call_ns))]
        tracing = Memtrace(target.pid)
        rows.append(("traced", median(runs, lambda: pair_ns(target)), median(runs, call_ns)))
        tracing.stop()
        rows.append(("afterwards", median(runs, lambda: pair_ns(target)), median(runs, call_ns)))
    print("| | malloc+free pair of the target | getppid() of another process |\n|---|---|---|")
    for name, pair, call in rows:
        print(f"| {name} | {pair:,.0f} ns | {call:,.0f} ns |")


if __name__ == "__main__":
    main()
