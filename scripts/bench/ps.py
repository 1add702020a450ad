"""How long ``memtrace ps`` takes beside smem, with a thousand processes on the machine: medians of interleaved runs.

Each view is shown by both, one after the other, with the output piped away. The processes are sleep(1): small, with
some twenty mappings. Memory and CPU time of both are those of the finished command.

    .venv/bin/python -m scripts.bench.ps [--processes N] [--runs N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tests.bpf.harness import ROOT, memtrace_command, process_state, wait_for

VIEWS = {
    "by process": ((), ()),
    "by user": (("-u",), ("--by", "user")),
    "by mapping": (("-m",), ("--by", "mapping")),
}
# What the ratio is to be at most, for the view that people use first.
GOAL = 0.5


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one command: wall and CPU time in seconds, largest RSS in bytes."""

    wall: float
    cpu: float
    rss: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=1000, metavar="N", help="default 1000")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="of each, default 7")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    arguments = parser.parse_args()
    smem = shutil.which("smem")
    if smem is None:
        parser.error("smem is missing: apt install smem")
    figures: dict[str, dict[str, list[Cost]]] = {}
    with sleepers(arguments.processes):
        for view, (theirs, ours) in VIEWS.items():
            commands = {"smem": [smem, *theirs], "memtrace": [*memtrace_command(), "ps", *ours]}
            runs: dict[str, list[Cost]] = {name: [] for name in commands}
            for _ in range(arguments.runs):
                for name, command in commands.items():
                    runs[name].append(cost_of(command))
            figures[view] = runs
    print_table(figures)
    if arguments.json:
        document = {
            "processes": arguments.processes,
            "kernel": os.uname().release,
            "views": {v: {n: [asdict(c) for c in costs] for n, costs in runs.items()} for v, runs in figures.items()},
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(ratio(figures["by process"]) > GOAL)


@contextlib.contextmanager
def sleepers(count: int) -> Iterator[None]:
    """That many processes, all of them past their start; none is left behind."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        # One by one, so that those that were started are ended also where the next one cannot be.
        for _ in range(count):
            running.append(subprocess.Popen(["sleep", "infinity"], stdin=subprocess.DEVNULL))  # noqa: PERF401
        for process in running:
            wait_for(partial(_is_asleep, process.pid), "sleep sleeps")
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def _is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n" and process_state(pid) == "S"


def cost_of(command: list[str]) -> Cost:
    """Run it to its end with the output piped away; raises CalledProcessError where it fails."""
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while os.read(process.stdout.fileno(), 1 << 20):
            pass
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def ratio(runs: dict[str, list[Cost]]) -> float:
    """Of the medians of the wall times, pair by pair being too noisy."""
    return median(c.wall for c in runs["memtrace"]) / median(c.wall for c in runs["smem"])


def print_table(figures: dict[str, dict[str, list[Cost]]]) -> None:
    print("| view | smem | memtrace ps | ratio | CPU, smem | CPU, memtrace | RSS, smem | RSS, memtrace |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for view, runs in figures.items():
        wall, cpu, rss = (
            [median(getattr(cost, field) for cost in runs[name]) for name in ("smem", "memtrace")]
            for field in ("wall", "cpu", "rss")
        )
        print(
            f"| {view} | {wall[0] * 1e3:.0f} ms | {wall[1] * 1e3:.0f} ms | {ratio(runs):.2f} | {cpu[0] * 1e3:.0f} ms "
            f"| {cpu[1] * 1e3:.0f} ms | {rss[0] / 2**20:.0f} MiB | {rss[1] / 2**20:.0f} MiB |"
        )


if __name__ == "__main__":
    sys.exit(main())
