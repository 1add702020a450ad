"""Recordings of made-up sessions, by the code that records real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.unit.reports import KIB, LIBC, MIB, STARTED, frame, sample_report, vma
from tracer.model.look import Held, Look, StackKey, Window
from tracer.model.report import Frame, Report, Sampling
from tracer.model.vma import RssCounters, Snapshot, VmaUsage
from tracer.store.observer import Named, Observer
from tracer.store.recorder import first_look, origin_of
from tracer.store.writer import Writer, create_file

LEAK, CACHE, LOG = 0x9F3C5A1B2D4E6F70, 0xC0FFEE, 0xA0A0
FRAMES: dict[int, tuple[Frame, ...]] = {
    LEAK: (
        frame("malloc", LIBC, 0x99),
        frame("store_attributes", "/srv/server", 0x10, build_id="ab12"),
        frame("main", "/srv/server", 0x20, build_id="ab12"),
        frame("__libc_start_call_main", LIBC),
    ),
    CACHE: (
        frame("malloc", LIBC, 0x99),
        frame("cache_insert", "/srv/server", 0x30),
        frame("main", "/srv/server", 0x40),
    ),
    LOG: (frame("mmap", LIBC, 0x98), frame("log_rotate", "/srv/server", 0x50), frame("main", "/srv/server", 0x60)),
}


def snapshot(seconds: float, heap: int, extra: int = 0) -> Snapshot:
    """A heap, a library and a vsyscall page, whose end does not fit into 63 bits."""
    usages = (
        VmaUsage(vma(0x55D000000000, max(heap, 4 * KIB), b"[heap]"), heap, anonymous=heap),
        VmaUsage(vma(0x7F0000000000, 2 * MIB, LIBC.encode(), "r-xp"), MIB),
        *([VmaUsage(vma(0x7F1000000000, extra), extra, anonymous=extra)] if extra else []),
        VmaUsage(vma(0xFFFFFFFFFF600000, 4 * KIB, b"[vsyscall]", "--xp"), 0),
    )
    return Snapshot(int(seconds * 1e9), usages, RssCounters(anon=heap + extra, file=MIB))


CLASSES = {0x55D000000000: "heap", 0x7F0000000000: "file", 0xFFFFFFFFFF600000: "kernel"}


def look(
    seconds: float,
    allocations: Mapping[int, tuple[int, ...]],
    *,
    heap: int = 8 * MIB,
    mapped: Mapping[StackKey, Held] | None = None,
    seen: Snapshot | None = None,
    **changes: Any,
) -> Look:
    """A look that reads the VMAs, unless ``seen`` is an earlier snapshot."""
    vmas = seen or snapshot(seconds, heap)
    known: dict[str, Any] = {
        "seconds": seconds,
        "rss": RssCounters(anon=heap, file=MIB),
        "allocations": allocations,
        "mapped": mapped,
        "snapshot": vmas,
        "snapshot_age": seconds - vmas.time_ns / 1e9,
        "classes": CLASSES,
        "counters": {"probe_hits": int(seconds * 100), "forks": 0},
        "losses": {"live_full": 0},
        "probed": ("glibc malloc in libc.so.6 (17 places)",),
        "notes": (),
        "sampling": Sampling(),
        "rss_source": "rss-stat",
        "self_cpu": seconds / 100,
        "self_rss": 50 * MIB,
    }
    return Look(**(known | changes))


def window(frames_of: Callable[[int], tuple[tuple[Frame, ...], bool]] | None = None, **changes: Any) -> Window:
    """The start of a session."""
    known: dict[str, Any] = {
        "command": "/srv/server --all",
        "started": STARTED,
        "snapshot": snapshot(0, 8 * MIB),
        "classes": CLASSES,
        "frames_of": frames_of or (lambda stack: (FRAMES.get(stack, (frame(f"f{stack:x}"),)), True)),
    }
    return Window(**(known | changes))


def leaking(seconds: int, leak: int = MIB, cache: int = 2 * MIB) -> list[Look]:
    """A session with a look each second: a leak, and a cache that is full after a third of it."""
    looks = []
    for second in range(1, seconds + 1):
        full = min(cache, cache * 3 * second // seconds)
        held = leak * second
        allocations = {
            LEAK: (second * 100, held + 4 * KIB, 4, 4 * KIB, 0, 0),
            CACHE: (second * 50, full + second * KIB, second * 50 - full // KIB, second * KIB, 0, 0),
        }
        mapped: Mapping[StackKey, Held] = {("mmap", LOG): Held(second * 4 * KIB, 1, 64 * KIB, 1, 0, 0)}
        looks.append(look(float(second), allocations, heap=8 * MIB + held + full, mapped=mapped))
    return looks


def write_recording(
    path: Path,
    looks: Iterable[Look],
    report: Report | None = None,
    *,
    begun: Window | None = None,
    named: Sequence[int] = (LEAK, CACHE, LOG),
    **limits: int,
) -> Path:
    """Write a recording without a thread; without ``report`` it has no end."""
    create_file(path, force=True)
    writer = Writer(path, origin_of(4711, {"interval": "1.0"}), **limits)
    begun = begun or window()
    writer.begin({"command": begun.command, "started": begun.started.isoformat()})
    observer = Observer()
    writer.add(observer.changes(first_look(begun), [Named(stack, *begun.frames_of(stack)) for stack in named]))
    for each in looks:
        writer.add(observer.changes(each, stacks=not writer.is_full))
    if report is not None:
        writer.finish(report, observer.frames, {"ended": report.ended})
    writer.close()
    return path


def finished(path: Path, seconds: int = 30, **changes: Any) -> Path:
    """A recording of the sample session, with its end."""
    return write_recording(path, leaking(seconds), sample_report(**changes))
