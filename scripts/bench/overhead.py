"""What tracing costs the target: memtrace's modes, the floor of empty probes, and other tracers, in one run.

Usage (as root, after scripts/setup --dev):
    .venv/bin/python -m scripts.bench.overhead [--quick] [--rounds N] [--json FILE] [--only WORD] [--tools LIST]

Each round runs every tool on every workload, one after the other, on a fresh process; a ratio compares with the
untraced run of the same round. Costs are the target's CPU time for each pair (or page, request, record), which waiting
for a CPU does not touch; throughput is work for CPU time. With the budget it is measured from 3 s after the start on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.bench.tools import MEMTRACE, TOOLS, RunningMemtrace, environment, is_installed, launched, python, traced
from tests.bpf.harness import HarnessError, Json, Target, wait_for
from tests.targets.build import command
from tracer.procfs.status import cpu_seconds

HERE = Path(__file__).resolve().parent
SETTLED = 3.0
PORT = "7391"


@dataclass(frozen=True)
class Workload:
    """A program to trace: its command, the function that leaks in it, and the library with its allocator."""

    name: str
    argv: tuple[str, ...]
    planted: tuple[str, ...]
    unit: str = "pair"
    tools: tuple[str, ...] = (*MEMTRACE, "untraced", "floor", "memleak", "heaptrack")


@dataclass(frozen=True)
class Result:
    """One measurement: CPU nanoseconds a unit of work; for memtrace, whether the leak was named first."""

    workload: str
    tool: str
    round: int
    ns: float
    named_first: bool | None = None
    target_share: float | None = None
    self_cpu_share: float | None = None


class Counting:
    """A target that counts its work, from the outside."""

    def __init__(self, work: Callable[[], float], pid: int) -> None:
        self.work = work
        self.pid = pid

    def ns(self, seconds: float) -> float:
        """CPU nanoseconds for a unit of work, over a while."""
        before, spent = self.work(), cpu_seconds(self.pid)
        time.sleep(seconds)
        after, later = self.work(), cpu_seconds(self.pid)
        return (later - spent) / max(after - before, 1) * 1e9


def workloads(directory: Path, quick: bool) -> list[Workload]:
    """All of them; the quick ones tell most."""
    leak = ("planted_leak",)

    def pairs(threads: int, depth: int, every: int = 50_000) -> tuple[str, ...]:
        return tuple(command("hot_leak", directory, threads, every, 1000, depth))

    some = [
        Workload("pairs, 1 thread, 10 deep", pairs(1, 8), leak),
        Workload(
            "redis SET, and a list that grows",
            ("redis",),
            ("quicklistPushTail",),
            "request",
            (*MEMTRACE, "untraced", "floor"),
        ),
        Workload(
            "Python records",
            (*python(), str(HERE / "python_load.py")),
            ("PyByteArray_Resize", "__memset"),
            "record",
            (*MEMTRACE, "untraced", "floor", "memleak", "memray"),
        ),
    ]
    more = [
        Workload("pairs, 2 threads, 10 deep", pairs(2, 8), leak),
        Workload("pairs, 8 threads, 10 deep", pairs(8, 8), leak),
        Workload("pairs, 1 thread, 40 deep", pairs(1, 38), leak),
        Workload("fresh pages", tuple(command("touch", directory)), (), "page", (*MEMTRACE, "untraced")),
    ]
    return some if quick else some + more


@contextmanager
def running(workload: Workload, tool: str, directory: Path) -> Iterator[Counting]:
    """The workload's process, with a C library of its own: others' probes are on the system's."""
    if workload.argv == ("redis",):
        with redis() as counting:
            yield counting
        return
    argv = launched(tool, workload.argv, directory)
    with Target(argv, {"LD_LIBRARY_PATH": str(own_libc(directory)), **environment(tool)}) as target:
        yield Counting(lambda: float(target.command("c")["pairs"]), target.pid)


@contextmanager
def redis() -> Iterator[Counting]:
    """A server with clients that set keys, and one that lets a list grow; the work is what the server counts."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(["redis-server", "--port", PORT, "--save", "", "--appendonly", "no"], **quiet)  # type: ignore[call-overload]
    base = ["redis-benchmark", "-p", PORT, "-q", "-n", "1000000000"]
    loads = [[*base, "-c", "20", "-t", "set", "-r", "10000", "-d", "200"]]
    loads.append([*base, "-c", "1", "rpush", "planted", "x" * 1000])
    clients: list[subprocess.Popen[bytes]] = []

    def requests() -> float:
        told = subprocess.run(["redis-cli", "-p", PORT, "info", "stats"], capture_output=True, text=True, check=False)
        lines = dict(line.split(":", 1) for line in told.stdout.splitlines() if ":" in line)
        return float(lines.get("total_commands_processed", 0))

    try:
        wait_for(lambda: requests() > 0, "redis-server answers")
        clients += [subprocess.Popen(load, **quiet) for load in loads]  # type: ignore[call-overload]
        wait_for(lambda: requests() > 150_000, "redis has all keys")
        yield Counting(requests, server.pid)
    finally:
        for process in (*clients, server):
            process.kill()
            process.wait()


def own_libc(directory: Path) -> Path:
    """A directory with a copy of the C library."""
    place = directory / "lib"
    if not place.exists():
        place.mkdir()
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").split()
        shutil.copy(next(word for word in maps if word.endswith("/libc.so.6")), place)
    return place


def measure(workload: Workload, tool: str, number: int, seconds: float, directory: Path) -> Result:
    """One tool on one workload."""
    library = str(own_libc(directory) / "libc.so.6")
    with running(workload, tool, directory) as counting:
        calm = counting.ns(0.3)
        began, cpu = time.monotonic(), 0.0
        with traced(tool, counting.pid, directory, library) as running_tool:
            if tool == "memleak":
                wait_for(lambda: counting.ns(0.2) > 5 * calm, "memleak traces", 20)
            if tool == "budget":
                time.sleep(max(0.0, SETTLED - (time.monotonic() - began)))
            if isinstance(running_tool, RunningMemtrace):
                cpu = cpu_seconds(running_tool.pid)
            start = time.monotonic()
            ns = counting.ns(seconds)
            if isinstance(running_tool, RunningMemtrace):
                cpu = (cpu_seconds(running_tool.pid) - cpu) / (time.monotonic() - start)
    report = running_tool.report
    # Where each call is traced, a loop is so slow that hardly anything leaks in the time of a run.
    named = first_stack_has(report, workload.planted) if report and workload.planted and tool == "budget" else None
    share = report["overhead"]["target_share"] if report else None
    return Result(workload.name, tool, number, ns, named, share, cpu if report else None)


def first_stack_has(report: Json, functions: tuple[str, ...]) -> bool:
    """Whether the report's first stack leads through a function whose name begins with one of these."""
    frames = [frame for stack in report["stacks"][:1] for frame in stack["frames"]]
    return any((frame["function"] or "").startswith(functions) for frame in frames)


def table(results: Sequence[Result], chosen: Sequence[Workload]) -> list[str]:
    """Medians and ratios as a table."""
    by: dict[tuple[str, str], dict[int, Result]] = defaultdict(dict)
    for result in results:
        by[result.workload, result.tool][result.round] = result
    lines = ["| workload | tool | ns a unit | added | of memleak's | of the floor's | throughput | leak named first |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---|")
    for workload in chosen:
        plain = by[workload.name, "untraced"]

        def added(tool: str, name: str = workload.name, plain: dict[int, Result] = plain) -> float | None:
            rows = [row.ns - plain[number].ns for number, row in by[name, tool].items() if number in plain]
            return statistics.median(rows) if rows else None

        for tool in TOOLS:
            rows = by[workload.name, tool]
            if not rows:
                continue
            ratios = [plain[number].ns / row.ns for number, row in rows.items() if number in plain]
            named = [row.named_first for row in rows.values() if row.named_first is not None]
            cost = added(tool)
            lines.append(
                f"| {workload.name} | {tool} | {statistics.median(row.ns for row in rows.values()):,.0f} "
                f"| {cost or 0:,.0f} | {_ratio(cost, added('memleak'))} | {_ratio(cost, added('floor'))} "
                f"| {statistics.median(ratios):.3f} | {f'{sum(named)} of {len(named)}' if named else ''} |"
            )
    return lines


def _ratio(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.2f}" if part is not None and whole else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer workloads and rounds, shorter")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", default="", help="workloads whose name has this word")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid():
        parser.error("needs root")
    rounds = options.rounds or (2 if options.quick else 5)
    seconds = options.seconds or (3.0 if options.quick else 6.0)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        chosen = [each for each in workloads(directory, options.quick) if options.only in each.name]
        for number in range(rounds):
            for workload in chosen:
                for tool in options.tools.split(","):
                    if tool not in workload.tools or not is_installed(tool):
                        continue
                    try:
                        results.append(measure(workload, tool, number, seconds, directory))
                    except HarnessError as error:
                        print(f"{workload.name}, {tool}: {error}")
    print("\n".join(table(results, chosen)))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
