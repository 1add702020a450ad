"""The longest time for which a program is held up: untraced, and while memtrace attaches, traces and detaches.

The program beats every 50 us (--busy: without pause), each beat with a malloc, a free, an mmap, an munmap and a page
fault. Every window lasts as long as what it holds, the untraced ones as long as an attach takes here; figures are
medians over the runs, with the worst in parentheses. On a loaded machine the untraced gaps say how far to trust it.

    sudo python -m scripts.bench.heartbeat [--runs N] [--busy]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from tests.bpf.harness import Json, Memtrace, Target, wait_for
from tests.targets.build import command

WINDOWS = ("untraced", "attach", "trace", "detach")
TRACED_SECONDS = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="default 10")
    parser.add_argument("--busy", action="store_true", help="beat without pause")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("tracing needs root")
    gaps: dict[str, list[float]] = {name: [] for name in WINDOWS}
    with tempfile.TemporaryDirectory() as directory:
        argv = command("heartbeat", Path(directory), "busy" if arguments.busy else "sleep")
        for _ in range(arguments.runs):
            with Target(argv) as target:
                for name, measured in one_run(target):
                    gaps[name].append(measured["longest_gap_ns"] / 1e6)
    print("| window | largest gap, median | worst |\n| --- | --- | --- |")
    for name, values in gaps.items():
        print(f"| {name} | {median(values):.2f} ms | {max(values):.2f} ms |")
    return 0


def one_run(target: Target) -> Iterator[tuple[str, Json]]:
    """The windows of one attach to a target, in order."""
    began = time.monotonic()
    with Memtrace(target.pid) as memtrace:  # not measured: its time is that of the untraced window
        attach_seconds = time.monotonic() - began
        memtrace.stop()
    yield "untraced", measure(target, lambda: let_pass(attach_seconds))
    with Memtrace(target.pid, "--interval", "0.1", await_tracing=False) as memtrace:
        yield "attach", measure(target, memtrace.wait_until_tracing)
        yield "trace", measure(target, lambda: let_pass(TRACED_SECONDS))
        yield "detach", measure(target, lambda: memtrace.stop())


def measure(target: Target, act: Callable[[], object]) -> Json:
    """What the target says of the time that `act` takes."""
    target.command("b")
    act()
    return target.command("e")


def let_pass(seconds: float) -> None:
    end = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > end, "the window's end", seconds + 1)


if __name__ == "__main__":
    sys.exit(main())
