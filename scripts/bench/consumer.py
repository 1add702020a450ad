"""What memtrace itself takes while it traces redis under load: CPU of one core, memory, kernel memory.

Usage (as root, after scripts/setup --dev):
    .venv/bin/python -m scripts.bench.consumer [--seconds N] [--runs N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from scripts.bench.overhead import redis
from tests.bpf.harness import Memtrace
from tracer.procfs.status import cpu_seconds, read_counters

# Options of each row; the harness's own come before them.
MODES = {
    "default": ("--sample-bytes", "16384", "--max-overhead", "5"),
    "no budget": ("--sample-bytes", "16384", "--max-overhead", "none"),
    "everything": ("--sample-bytes", "1", "--max-overhead", "none"),
}
_SETTLED = 3.0


def children_of(pid: int) -> list[int]:
    """The processes that a process has started: the one that holds the probes."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def one_run(pid: int, options: tuple[str, ...], seconds: float) -> dict[str, float]:
    """Trace for a while; CPU time is that of memtrace and of its child."""
    memtrace = Memtrace(pid, *options)
    time.sleep(_SETTLED)
    ours = [memtrace.pid, *children_of(memtrace.pid)]
    spent, began = sum(map(cpu_seconds, ours)), time.monotonic()
    time.sleep(seconds)
    share = (sum(map(cpu_seconds, ours)) - spent) / (time.monotonic() - began)
    memory = read_counters(memtrace.pid)
    report = memtrace.stop().required_report()
    return {
        "cpu_share": share,
        "rss_anon": memory.anon,
        "rss_file": memory.file,
        "map_memory": report["overhead"]["map_memory"],
        "probe_hits_per_second": report["overhead"]["probe_hits"] / report["window"]["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("needs root")
    medians: dict[str, dict[str, float]] = {}
    with redis() as server:
        for mode, arguments in MODES.items():
            runs = [one_run(server.pid, arguments, options.seconds) for _ in range(options.runs)]
            medians[mode] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    if options.json:
        print(json.dumps(medians))
        return
    print("| mode | CPU of one core | anonymous | file pages | BPF maps | hits a second |")
    print("|---|---:|---:|---:|---:|---:|")
    for mode, row in medians.items():
        sizes = " | ".join(f"{row[name] / (1 << 20):.0f} MiB" for name in ("rss_anon", "rss_file", "map_memory"))
        print(f"| {mode} | {100 * row['cpu_share']:.2f} % | {sizes} | {row['probe_hits_per_second']:,.0f} |")


if __name__ == "__main__":
    main()
