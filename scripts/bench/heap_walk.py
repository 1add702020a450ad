"""How right a walk over glibc's heap is, and what it costs: against mallinfo2 and a real malloc_trim, per glibc.

    python -m scripts.bench.heap_walk [--quick]

With MEMTRACE_GLIBCS set (see scripts/bench/glibcs), other versions of glibc are measured too. The first table has what
malloc says and what the walk found, in bytes; the second the time of a walk (best of three), by number of chunks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.bpf.harness import Json, Target
from tests.targets.glibcs import Glibc, other_glibcs, system_glibc
from tracer.heap.glibc import walk
from tracer.heap.heap_walk import HeapWalk

Arguments = tuple[str | int, ...]
ACCURACY: tuple[tuple[str, Arguments], ...] = (
    ("frag_half", ()),
    ("frag_half", (200_000, 100)),
    ("frag_page", ()),
    ("frag_top", ()),
    ("frag_arenas", ()),
    ("frag_mixed", (5, 20_000)),
    ("frag_mixed", (3, 4_000, "foreign")),
    ("frag_mixed", (3, 4_000, "blocked")),
)
SPEED: tuple[tuple[str, Arguments], ...] = (
    ("frag_half", (100_000, 300)),
    ("frag_half", (1_000_000, 300)),
    ("frag_half", (4_000_000, 150)),
    ("frag_half", (1_000_000, 100)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="no heap of more than 1e5 chunks")
    arguments = parser.parse_args()
    print("| glibc | target | in use: malloc / walk | free: malloc / walk | trim: predicted / real | us |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        out_dir = Path(directory)
        for glibc in (system_glibc(), *other_glibcs()):
            for name, words in ACCURACY:
                with Target(glibc.command(name, out_dir, *words)) as target:
                    print(f"| {glibc.name} | {' '.join(map(str, (name, *words)))} | {accuracy(target)} |")
        print("\n| chunks | heap | walk | per chunk | our memory |\n| --- | --- | --- | --- | --- |")
        for name, words in SPEED[: 1 if arguments.quick else None]:
            with Target(system_glibc().command(name, out_dir, *words), deadline=120) as target:
                target.go()
                print(f"| {speed(target.pid)} |")
    live(system_glibc())
    return 0


def accuracy(target: Target) -> str:
    said: Json = target.go()["mallinfo"]
    heap = walk(target.pid)
    if not isinstance(heap, HeapWalk):
        return f"refused: {heap.reason}"
    use = heap.total
    answer = target.command("t")
    real = (answer["before"]["rss_pages"]["anon"] - answer["after"]["rss_pages"]["anon"]) * 4096
    free = use.free + use.fast + use.top
    parts = (
        f"{said['uordblks']:,} / {use.in_use:,}",
        f"{said['fordblks']:,} / {free:,}",
        f"{use.returnable:,} / {real:,}",
        f"{heap.seconds * 1e6:,.0f}",
    )
    return " | ".join(parts)


def speed(pid: int) -> str:
    """The best of three walks, and the most memory that we had meanwhile beyond what we had before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what we have
    before = own_memory("VmRSS")
    walks = [walk(pid, seconds=60) for _ in range(3)]
    done = [heap for heap in walks if isinstance(heap, HeapWalk)]
    if not done:
        return str(walks[0])
    best = min(done, key=lambda heap: heap.seconds)
    use = best.total
    peak = own_memory("VmHWM") - before
    per_chunk = best.seconds / use.chunks * 1e9
    return f"{use.chunks:,} | {use.system / 1e6:,.0f} MB | {best.seconds:.3f} s | {per_chunk:.0f} ns | {peak:.0f} MiB"


def own_memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def live(glibc: Glibc) -> None:
    """How often a heap under full load is walked to the end."""
    with tempfile.TemporaryDirectory() as directory, Target(glibc.command("heap_churn", Path(directory), 2)) as target:
        began, before = time.monotonic(), target.command("c")["operations"]
        walks = [walk(target.pid) for _ in range(20)]
        rate = (target.command("c")["operations"] - before) / (time.monotonic() - began)
        done = [heap for heap in walks if isinstance(heap, HeapWalk)]
        seconds = sorted(heap.seconds for heap in done)
        print(
            f"\nunder load ({rate / 1e6:.1f} M malloc+free/s, 2 threads): {len(done)} of {len(walks)} walks done",
            end="",
        )
        print(f", median {seconds[len(seconds) // 2]:.2f} s" if done else "")


if __name__ == "__main__":
    sys.exit(main())
