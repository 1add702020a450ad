"""What `memtrace watch` costs: how much of the time its reads take, and by how much a program is held up.

First table: a growing process of some size, watched for a while. Second: the longest time for which a program that
maps, faults and allocates all the time is held up, unwatched and watched ten times a second.

    python -m scripts.bench.watching [--seconds N] [--runs N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.bpf.harness import ROOT, Target, memtrace_command, wait_for
from tests.targets.build import command

GROWER = """
import ctypes, mmap, sys, time
size, vmas = int(sys.argv[1]), int(sys.argv[2])
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for offset in range(0, size, 4096):
    area[offset] = 1
base = libc.mmap(None, vmas * 4096 + 4096, 3, 0x22, -1, 0)
for index in range(0, vmas, 2):
    libc.mprotect(base + index * 4096, 4096, 1)
print('{"ready": true}', flush=True)
kept = []
while True:
    kept.append([bytes(900) for _ in range(200)])
    time.sleep(0.1)
"""
SIZES = (
    ("20 MiB", 20 << 20, 2),
    ("1 GiB", 1 << 30, 2),
    ("4 GiB", 4 << 30, 2),
    ("20 MiB, 60,000 VMAs", 20 << 20, 60_000),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0, metavar="N", help="length of a watch, default 20")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of the second table, default 5")
    arguments = parser.parse_args()
    print("| process | reads, share of the time | of it start and end | longest read | own CPU | own RSS |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, size, vmas in SIZES:
        print(f"| {name} | {row(watch(size, vmas, arguments.seconds))} |", flush=True)
    print("\n| | largest gap, median | worst |\n| --- | --- | --- |")
    for watched in (False, True):
        gaps = [gap_ms(watched, arguments.seconds / 4) for _ in range(arguments.runs)]
        print(f"| {'watched' if watched else 'unwatched'} | {median(gaps):.2f} ms | {max(gaps):.2f} ms |", flush=True)
    return 0


def watch(size: int, vmas: int, seconds: float) -> dict[str, Any]:
    """The summary of a watch of a growing process."""
    with Target([sys.executable, "-c", GROWER, str(size), str(vmas)], deadline=120) as target:
        done = subprocess.run(
            [*memtrace_command(), "watch", str(target.pid), "--json", "-d", str(seconds)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row(summary: dict[str, Any]) -> str:
    cost = summary["cost"]
    longest = max(read["longest"] for read in cost["reads"].values())
    figures = (
        f"{100 * cost['share']:.2f} %",
        f"{100 * cost['edges'] / summary['window']['seconds']:.2f} %",
        f"{1000 * longest:.1f} ms",
        f"{cost['self_cpu']:.2f} s",
        f"{cost['self_rss'] >> 20} MiB",
    )
    return " | ".join(figures)


def gap_ms(watched: bool, seconds: float) -> float:
    """The longest time for which the program was held up within a window."""
    with tempfile.TemporaryDirectory() as directory, Target(command("heartbeat", Path(directory), "sleep")) as target:
        watcher = None
        if watched:
            watcher = subprocess.Popen(
                [*memtrace_command(), "watch", str(target.pid), "--json", "-i", "0.1"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
            assert watcher.stdout is not None
            watcher.stdout.readline()
        target.command("b")
        end = time.monotonic() + seconds
        wait_for(lambda: time.monotonic() > end, "the window's end", seconds + 1)
        measured = target.command("e")
        if watcher is not None:
            watcher.kill()
            watcher.communicate()
    return float(measured["longest_gap_ns"]) / 1e6


if __name__ == "__main__":
    sys.exit(main())
