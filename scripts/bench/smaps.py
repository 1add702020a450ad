"""What it costs to read the mappings of a process with 60,000 VMAs: memtrace maps against pmap -X and psutil.

Also measures the parser on top of the kernel's own read of smaps, and checks that maps + PAGEMAP_SCAN have the figures
of smaps on every VMA.

Usage (after scripts/setup --dev):  .venv/bin/python -m scripts.bench.smaps [--runs N] [--vmas N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracer.procfs.files import read_parts
from tracer.procfs.maps import read_maps
from tracer.procfs.pagemap import Residency
from tracer.procfs.smaps import parse_smaps, read_smaps
from tracer.procfs.smaps_table import parse_smaps_table

ROOT = Path(__file__).resolve().parents[2]
USED = ("Size", "Rss", "Pss", "Private_Clean", "Private_Dirty", "Shared_Clean", "Shared_Dirty", "Anonymous", "Swap")


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def command(*words: object) -> Callable[[], object]:
    def run() -> object:
        return subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, check=True)

    return run


def read_only(pid: int) -> None:
    """The kernel's own part: all of smaps is read, nothing is done with it."""
    for _ in read_parts(pid, "smaps"):
        pass


def read_table(pid: int) -> None:
    """Every VMA with addresses, permissions, path, flags and nine sizes, in columns."""
    table = parse_smaps_table(read_parts(pid, "smaps"))
    for name in USED:
        table.sizes(name)


def quick_usages(pid: int) -> Any:
    with Residency(pid) as residency:
        return residency.usages(read_maps(pid))


def differing(pid: int) -> int:
    """VMAs on which maps + PAGEMAP_SCAN and smaps do not agree."""
    quick, full = quick_usages(pid), read_smaps(pid)
    if len(quick) != len(full):
        return max(len(quick), len(full))
    return sum(
        (a.vma, a.rss, a.anonymous, a.swap) != (b.vma, b.rss, b.anonymous, b.swap)
        for a, b in zip(quick, full, strict=True)
    )


def works(pid: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name; the order is that of a round."""
    memtrace = (sys.executable, "-m", "tracer", "maps")
    data = b"".join(read_parts(pid, "smaps"))
    found: dict[str, Callable[[], object]] = {
        "memtrace maps": command(*memtrace, pid),
        "memtrace maps -X": command(*memtrace, "-X", pid),
        "memtrace maps --quick": command(*memtrace, "--quick", pid),
        "memtrace maps --json": command(*memtrace, "--json", pid),
        "read smaps": lambda: read_only(pid),
        "read and parse smaps, columns": lambda: read_table(pid),
        "parse smaps to rows": lambda: parse_smaps(data),
        "maps and PAGEMAP_SCAN": lambda: quick_usages(pid),
    }
    if shutil.which("pmap"):
        found["pmap -X"] = command("pmap", "-X", pid)
        found["pmap -x"] = command("pmap", "-x", pid)
    try:
        import psutil  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        pass
    else:
        found["psutil.memory_maps"] = lambda: psutil.Process(pid).memory_maps(grouped=False)
    return found


def measure(pid: int, runs: int) -> dict[str, list[float]]:
    """Seconds of each, in rounds, so that what else runs on the machine meets all alike."""
    todo = works(pid)
    times: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(runs):
        for name, work in todo.items():
            times[name].append(seconds(work))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--vmas", type=int, default=60_000)
    parser.add_argument("--mib", type=int, default=0, help="resident memory beyond that of the VMAs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    program = [sys.executable, str(ROOT / "tests/targets/many_vmas.py"), str(options.vmas), str(options.mib)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        assert target.stdout and target.stdin
        if target.stdout.readline() != b"ready\n":
            sys.exit("the target could not make its VMAs: see vm.max_map_count")
        times = measure(target.pid, options.runs)
        unequal = differing(target.pid)
        target.stdin.close()
    report(times, unequal, options)


def report(times: dict[str, list[float]], unequal: int, options: argparse.Namespace) -> None:
    medians = {name: statistics.median(values) for name, values in times.items()}
    least = {name: min(values) for name, values in times.items()}
    base = "pmap -X"
    print(f"{options.vmas:,} VMAs, medians (least) of {options.runs} runs\n")
    print("| | ms | of pmap -X |\n|---|---|---|")
    for name, median in medians.items():
        share = f"{median / medians[base]:.2f} ({least[name] / least[base]:.2f})" if base in medians else "-"
        print(f"| {name} | {median * 1e3:,.0f} ({least[name] * 1e3:,.0f}) | {share} |")
    read, parsed = "read smaps", "read and parse smaps, columns"
    on_top = {"median": medians[parsed] - medians[read], "least": least[parsed] - least[read]}
    print(f"\nparser on top of the kernel's read: {on_top['median'] * 1e3:,.0f} ms ({on_top['least'] * 1e3:,.0f})")
    print(f"VMAs on which maps + PAGEMAP_SCAN differ from smaps: {unequal}")
    if options.json:
        figures = {"vmas": options.vmas, "seconds": times, "parser_on_top": on_top, "differing_vmas": unequal}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
