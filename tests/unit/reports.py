"""A report as a session of thirty seconds finds it; tests replace what they are about."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tracer.model.live import LiveStack, LiveState
from tracer.model.report import (
    ClassGrowth,
    Frame,
    LedgerRow,
    Overhead,
    Report,
    StackGrowth,
    Verdict,
    VmaGrowth,
)
from tracer.model.vma import RssCounters, Vma

KIB = 1024
MIB = 1024 * KIB
STARTED = datetime(2026, 2, 3, 14, 3, 22, 118_000, tzinfo=UTC)
LIBLDB = "/usr/lib/x86_64-linux-gnu/libldb.so.2.6.2"
LIBSAMBA = "/usr/lib/x86_64-linux-gnu/samba/libdsdb-module.so.0"
LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"


def vma(start: int, size: int, path: bytes = b"", perms: str = "rw-p") -> Vma:
    """A mapping of ``size`` bytes; one whose path begins with a slash has an inode."""
    return Vma(start, start + size, perms, 0, "fd:01", 4711 if path.startswith(b"/") else 0, path)


def frame(function: str | None, module: str | None = LIBSAMBA, offset: int = 0x1234, **more: Any) -> Frame:
    return Frame(function, module, offset, **more)


def stack(identity: str, size: int, **changes: Any) -> StackGrowth:
    """A malloc stack that holds ``size`` bytes in blocks of 320 bytes."""
    count = size // 320
    known = StackGrowth(
        id=identity,
        kind="malloc",
        bytes=size,
        count=count,
        allocated_bytes=size + 12 * 320,
        freed_bytes=12 * 320,
        allocated_count=count + 12,
        freed_count=12,
        rate=size / 30,
        oldest=29.8,
        vma_class="heap",
        complete=True,
        frames=(frame("store_attributes", function_offset=0x4C), frame("main", "/usr/sbin/samba", 0x99)),
        trend="growing",
    )
    return replace(known, **changes)


STORE = stack(
    "9f3c5a1b2d4e6f70",
    56 * MIB + 92 * KIB,
    frames=(
        frame("_talloc_memdup", "/usr/lib/x86_64-linux-gnu/libtalloc.so.2.4.0", function_offset=0x51),
        frame("store_attributes", file="/build/samba-4.17.12/source4/dsdb/repl/replicated_objects.c", line=214),
        frame(
            "dsdb_convert_object_ex",
            file="/build/samba-4.17.12/source4/dsdb/repl/replicated_objects.c",
            line=480,
            inlined=True,
        ),
        frame("dsdb_replicated_objects_convert", function_offset=0x8F2),
        frame("std::vector<std::pair<std::string, unsigned long>>::_M_realloc_insert", function_offset=0x1A),
        *(frame("tevent_common_loop_once", "/usr/lib/libtevent.so.0.15.0", function_offset=0xF1) for _ in range(3)),
        *(frame(f"ldb_chain_{i}", LIBLDB, 0x4000 + i, function_offset=16 * i) for i in range(1, 14)),
        frame(None, "/usr/sbin/samba", 0xA1F0),
        frame("__libc_start_call_main", LIBC, function_offset=0x7A),
    ),
)
MAPPED = stack(
    "00c1d2e3f4a5b6c7",
    2 * MIB,
    kind="mmap",
    count=1,
    allocated_count=3,
    freed_count=2,
    vma_class="anonymous",
    trend="steady",
    oldest=3.25,
    frames=(frame("__mmap", LIBC, function_offset=0x33), frame(None, LIBLDB, 0x7C3A)),
    complete=False,
)
FAULTED = stack(
    "77aa77aa77aa77aa",
    512 * KIB,
    kind="fault",
    count=128,
    allocated_count=0,
    freed_count=0,
    vma_class="file",
    oldest=0.0,
    trend="unknown",
    frames=(
        frame(
            "_find_and_load",
            "/usr/bin/python3.11",
            file="/usr/lib/python3.11/importlib/_bootstrap.py",
            line=1178,
            language="python",
        ),
    ),
)
LEDGER = (
    LedgerRow("heap", "live", STORE.id, 56 * MIB + 92 * KIB),
    LedgerRow("heap", "kept-by-allocator", None, 1_945 * KIB),
    LedgerRow("heap", "before-attach", None, 340 * KIB),
    LedgerRow("anonymous", "mapped", MAPPED.id, 2 * MIB),
    LedgerRow("anonymous", "released", None, -512 * KIB),
    LedgerRow("file", "faulted", FAULTED.id, 512 * KIB),
    LedgerRow("file", "unexplained", None, 288 * KIB),
    LedgerRow("thread stack", "memtrace", None, 4 * KIB),
)


def sample_report(**changes: Any) -> Report:
    """A leak of 56.1 MiB in a heap, found without a loss; its ledger closes."""
    known = Report(
        pid=25_568,
        command="/usr/sbin/samba --foreground --no-process-group",
        verdict=Verdict(
            "leak",
            "RSS grew 60.6 MiB in 30 s (2.0 MiB/s): 58.6 MiB in 3 call stacks, 1.9 MiB kept by malloc, "
            "288.0 KiB unexplained",
            (
                "store_attributes: 183,795 blocks still live, 12 ever freed, growing at a steady 1.9 MiB/s",
                "no plateau: each third of the window added as much as the one before",
            ),
        ),
        started=STARTED,
        seconds=30.04,
        ended="Ctrl-C",
        rss_start=RssCounters(anon=112 * MIB, file=11 * MIB + 412 * KIB),
        rss_end=RssCounters(anon=112 * MIB + 61_261 * KIB, file=12 * MIB + 188 * KIB),
        classes=(
            ClassGrowth("heap", 80 * MIB, 80 * MIB + 59_721 * KIB, 59 * MIB),
            ClassGrowth("anonymous", 31 * MIB + 900 * KIB, 33 * MIB + 388 * KIB, 2 * MIB),
            ClassGrowth("file", 11 * MIB + 412 * KIB, 12 * MIB + 188 * KIB, 0),
            ClassGrowth("thread stack", 120 * KIB, 124 * KIB, 0),
            ClassGrowth("kernel", 4 * KIB, 4 * KIB, 0),
        ),
        vmas=(
            VmaGrowth(vma(0x55D0C0A00000, 140 * MIB, b"[heap]"), "heap", 80 * MIB + 59_721 * KIB, 59_721 * KIB),
            VmaGrowth(vma(0x7F3A10000000, 3 * MIB), "anonymous", 2 * MIB, 2 * MIB),
            VmaGrowth(vma(0x7F3A20000000, 9 * MIB, LIBLDB.encode(), "r-xp"), "file", 3 * MIB, 800 * KIB),
            VmaGrowth(vma(0x7F3A30000000, 8 * MIB), "thread stack", 124 * KIB, 4 * KIB),
            VmaGrowth(vma(0x7F3A40000000, 1 * MIB), "anonymous", 0, -512 * KIB, gone=True),
            VmaGrowth(vma(0xFFFFFFFFFF600000, 4 * KIB, b"[vsyscall]", "--xp"), "kernel", 0, 0),
        ),
        stacks=(STORE, MAPPED, FAULTED),
        ledger=LEDGER,
        probed=("glibc 2.36: malloc, calloc, realloc, free and 6 more in /usr/lib/x86_64-linux-gnu/libc.so.6",),
        overhead=Overhead(target_share=0.012, self_cpu=0.42, self_rss=48 * MIB, probe_hits=1_104_532, map_memory=MIB),
        losses={"live_full": 0, "events_lost": 0},
    )
    return replace(known, **changes)


def sample_state(**changes: Any) -> LiveState:
    """The same process after twelve seconds."""
    stacks = tuple(
        LiveStack(
            f"{i:016x}",
            "malloc",
            f"{name} < ldb_msg_add < dsdb_replicated_objects_convert",
            size,
            size // 320,
            size / 12,
        )
        for i, (name, size) in enumerate(
            (("store_attributes", 9_318 * KIB), ("talloc_strdup", 2_200 * KIB), ("[heap]<T>::grow", 300 * KIB))
        )
    )
    known = LiveState(
        pid=25_568,
        command="/usr/sbin/samba --foreground --no-process-group",
        seconds=12.02,
        rss_start=RssCounters(anon=112 * MIB),
        rss=RssCounters(anon=124 * MIB + 300 * KIB),
        rss_history=tuple(112 * MIB + i * MIB for i in range(13)),
        live_bytes=11 * MIB + 922 * KIB,
        live_count=40_312,
        stacks=stacks,
        losses={"live_full": 0},
        status="tracing",
    )
    return replace(known, **changes)
