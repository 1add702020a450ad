"""What recording costs: an hour of looks at redis under load, played to the recorder as fast as it takes them.

Usage (as root, after scripts/setup --dev):  .venv/bin/python -m scripts.bench.recording [--looks N] [--seconds N]

First redis-server is traced and recorded for some seconds under load. What those looks held (stacks, how many of them
change from look to look, VMAs, depth of stacks) is then made up again for an hour at one look a second, and goes the
way that a session's looks go, but without the time between them: file size and cost for each look are real, and the
time is not. The target's own cost is that of tracing: recording reads nothing more of it but the classes of VMAs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.bench.ledger import redis
from tests.bpf.harness import ROOT, Memtrace, memtrace_command
from tests.unit.recordings import look, window
from tests.unit.reports import frame, sample_report, stack, vma
from tracer.model.look import Look
from tracer.model.vma import RssCounters, Snapshot, VmaUsage
from tracer.store.recorder import FileRecorder
from tracer.store.recording import Recording

PAGE = 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """What a recording's looks held."""

    stacks: int
    changing: int
    depth: int
    vmas: int
    changing_vmas: int


def record_redis(path: Path, seconds: float) -> Shape:
    """Trace redis under load and record it; prints what that took."""
    with tempfile.TemporaryDirectory() as directory, redis(Path(directory)) as server:
        loading = threading.Event()

        def load() -> None:
            while not loading.is_set():
                server.load()

        thread = threading.Thread(target=load)
        with Memtrace(server.pid, "-d", str(seconds), "-o", str(path), deadline=seconds + 60) as memtrace:
            thread.start()
            done = memtrace.finish()
        loading.set()
        thread.join()
        report = done.required_report()
    with Recording(path) as recording:
        looks = recording.looks
        changes = [number for number, _, _ in recording.stack_changes()]
        vma_rows = sum(1 for _ in recording._rows("vma_looks"))
        depths = [len(known.frames or ()) for known in recording.stacks.values()]
        shape = Shape(
            len(recording.stacks),
            len(changes) // max(1, len(looks) - 1),
            round(statistics.fmean(depths)),
            len(recording.vmas),
            max(1, (vma_rows - len(recording.vmas)) // max(1, len(looks) - 1)),
        )
    print(
        f"redis, {report['window']['seconds']:.0f} s under load: {path.stat().st_size / 1024:.0f} KiB, "
        f"{len(looks)} looks; "
        f"{report['overhead']['probe_hits']:,} probe hits, {report['overhead']['self_cpu']:.1f} s of memtrace's CPU"
    )
    print(f"shape: {shape}")
    return shape


def made_up(shape: Shape, count: int) -> list[Look]:
    """Looks of that shape."""
    chance = random.Random(1)
    stacks = [chance.getrandbits(64) for _ in range(shape.stacks)]
    totals = dict.fromkeys(stacks, (0, 0, 0, 0, 0, 0))
    starts = [0x7F0000000000 + (1 << 24) * i for i in range(shape.vmas)]
    rss = dict.fromkeys(starts, 100 * PAGE)
    looks = []
    for second in range(1, count + 1):
        for each in chance.sample(stacks, min(shape.changing, len(stacks))):
            count_now, size, frees, freed, *_ = totals[each]
            totals[each] = (count_now + 1000, size + 200_000, frees + 900, freed + 180_000, 0, 0)
        for start in chance.sample(starts, min(shape.changing_vmas, len(starts))):
            rss[start] += PAGE
        usages = tuple(VmaUsage(vma(start, 1 << 24), rss[start]) for start in starts)
        seen = Snapshot(second * 10**9, usages, RssCounters(anon=sum(rss.values())))
        looks.append(look(float(second), dict(totals), seen=seen, classes={}, mapped={}))
    return looks


def play(path: Path, shape: Shape, looks: list[Look]) -> None:
    """Record made-up looks; prints what that took."""
    frames = [frame(f"some_function_of_the_server_{i}", "/usr/bin/redis-server", i * 64) for i in range(shape.stacks)]

    def frames_of(identity: int) -> tuple[tuple[object, ...], bool]:
        chance = random.Random(identity)
        return tuple(chance.choice(frames) for _ in range(shape.depth)), True

    recorder = FileRecorder(path, force=True, pid=1, options={}, say=print)
    recorder.begin(window(frames_of))  # type: ignore[arg-type]
    recorder._waiting.join()
    handing, working, writing = [], [], []
    for each in looks:
        began, cpu, both = time.perf_counter(), time.thread_time(), time.process_time()
        recorder.look(each)
        handing.append(time.thread_time() - cpu)
        recorder._waiting.join()
        writing.append(time.perf_counter() - began)
        working.append(time.process_time() - both - handing[-1])
    held = [
        stack(f"{i:016x}", 1000 * i, frames=tuple(frames_of(i)[0]))
        for i in range(shape.stacks)  # type: ignore[arg-type]
    ]
    began = time.perf_counter()
    recorder.finish(replace(sample_report(), stacks=tuple(held)))
    finishing = time.perf_counter() - began
    recorder.close()
    print(f"\n{len(looks)} looks: {path.stat().st_size / 2**20:.1f} MiB")
    print("| what | median | 99 % | worst |\n|---|---|---|---|")
    for name, times in (
        ("CPU of the tracing thread, a look", handing),
        ("CPU of the writing thread, a look", working),
        ("until it is on disk, a look", writing),
    ):
        ordered = sorted(times)
        values = (statistics.median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1])
        print(f"| {name} | {' | '.join(f'{value * 1000:.2f} ms' for value in values)} |")
    print(f"| the report at the end | {finishing * 1000:.0f} ms | | |")


def timed(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([*memtrace_command(), *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--looks", type=int, default=3600)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--stacks", type=int, help="make up looks with so many stacks, a fifth of which change")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        real, hour = Path(directory, "redis.memtrace"), Path(directory, "hour.memtrace")
        shape = record_redis(real, options.seconds)
        if options.stacks:
            shape = replace(shape, stacks=options.stacks, changing=options.stacks // 5)
        play(hour, shape, made_up(shape, options.looks))
        for name, arguments in (
            ("report", ("report", str(hour))),
            ("report --json", ("report", str(hour), "--json")),
            ("report of its last tenth", ("report", str(hour), "--from", "90%")),
            ("report -o page.html", ("report", str(hour), "-o", f"{directory}/page.html")),
            ("diff of its halves", ("diff", str(hour))),
        ):
            print(f"| memtrace {name} | {timed(*arguments):.2f} s | | |")


if __name__ == "__main__":
    main()
