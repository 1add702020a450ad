"""A report as JSON under the contract ``memtrace/1``: every size in bytes, every time in seconds.

The names are fixed; later versions may add more. Text is always valid Unicode: a byte that was no UTF-8 appears as
``\\xff``, so that any JSON reader takes the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, TextIO

from tracer.model.report import Frame, HeapInside, Report, StackGrowth, VmaGrowth
from tracer.report.safe import valid_unicode as _text

SCHEMA = "memtrace/1"


def write_json(report: Report, file: TextIO) -> None:
    """Write the report as one line, so that several may be appended to one file (JSON lines)."""
    # dumps and not dump: only the former uses the encoder in C, and a report may hold 100,000 frames.
    file.write(json.dumps(to_json(report), allow_nan=False) + "\n")


def to_json(report: Report) -> dict[str, Any]:
    """The report as what ``json.dumps`` takes; stacks are sorted by the bytes that they hold."""
    stacks = sorted(report.stacks, key=lambda stack: stack.held, reverse=True)
    return {
        "schema": SCHEMA,
        "pid": report.pid,
        "command": _text(report.command),
        "verdict": {
            "kind": report.verdict.kind,
            "text": _text(report.verdict.text),
            "evidence": [_text(line) for line in report.verdict.evidence],
        },
        "window": {
            "start": report.started.isoformat(),
            "seconds": report.seconds,
            "ended": _text(report.ended),
        },
        "rss": _rss(report),
        "classes": [
            {
                "class": row.name,
                "rss_start": row.rss_start,
                "rss_end": row.rss_end,
                "growth": row.growth,
                "size_growth": row.size_growth,
            }
            for row in report.classes
        ],
        "vmas": [_vma(row) for row in report.vmas],
        "stacks": [_stack(stack) for stack in stacks],
        "ledger": [
            {"class": row.vma_class, "cause": row.cause, "stack": row.stack, "bytes": row.bytes}
            for row in report.ledger
        ],
        "heap": _heap(report.heap) if report.heap else None,
        "changes": [
            {"cause": _text(row.cause), "member": row.member, "grew": row.grew, "shrank": row.shrank}
            for row in report.changes
        ],
        "rss_source": report.rss_source,
        "changes_complete": report.changes_complete,
        "basis": report.basis,
        "unexplained": report.unexplained,
        "sampling": {"interval": report.sampling.interval, "exact": report.sampling.exact},
        "overhead": {
            "target_share": report.overhead.target_share,
            "cpu_share": report.overhead.cpu_share,
            "self_cpu": report.overhead.self_cpu,
            "self_rss": report.overhead.self_rss,
            "probe_hits": report.overhead.probe_hits,
            "map_memory": report.overhead.map_memory,
            "limit": report.overhead.limit,
            "probed_share": report.overhead.probed_share,
            "steps": [
                {"seconds": step.seconds, "action": _text(step.action), "target_share": step.share}
                for step in report.overhead.steps
            ],
        },
        "probed": [_text(line) for line in report.probed],
        "losses": {_text(name): count for name, count in report.losses.items()},
        "notes": [_text(line) for line in report.notes],
    }


def _rss(report: Report) -> dict[str, int | float | None]:
    """RSS at both ends; the members are growths, and those of RSS (not swap) sum to its growth.

    ``rate`` is in bytes per second, ``rate_error`` the half-width of its 95 % interval; null for too short a window.
    """
    start, end = report.rss_start, report.rss_end
    return {
        "start": start.rss,
        "end": end.rss,
        "growth": report.growth,
        "anon": end.anon - start.anon,
        "file": end.file - start.file,
        "shmem": end.shmem - start.shmem,
        "swap": end.swap - start.swap,
        "rate": report.rate.mean if report.rate else None,
        "rate_error": report.rate.error if report.rate else None,
    }


def _heap(heap: HeapInside) -> dict[str, Any]:
    """The heap's inside; a state that could not be read is null."""
    return {
        "allocator": _text(heap.allocator),
        "start": asdict(heap.start) if heap.start else None,
        "end": asdict(heap.end) if heap.end else None,
        "reason": _text_or_none(heap.reason),
        "finding": _text_or_none(heap.finding),
        "remedies": [_text(line) for line in heap.remedies],
    }


def _vma(row: VmaGrowth) -> dict[str, Any]:
    return {
        "start": f"{row.vma.start:x}",
        "end": f"{row.vma.end:x}",
        "perms": row.vma.perms,
        "path": row.vma.path.decode("utf-8", "backslashreplace"),
        "class": row.vma_class,
        "rss": row.rss,
        "growth": row.growth,
        "gone": row.gone,
    }


def _stack(stack: StackGrowth) -> dict[str, Any]:
    return {
        "id": stack.id,
        "kind": stack.kind,
        "bytes": stack.bytes,
        "count": stack.count,
        "bytes_error": stack.bytes_error,
        "unverified_bytes": stack.unverified_bytes,
        "allocated_bytes": stack.allocated_bytes,
        "freed_bytes": stack.freed_bytes,
        "allocated_count": stack.allocated_count,
        "freed_count": stack.freed_count,
        "rate": stack.rate,
        "oldest": stack.oldest,
        "trend": stack.trend,
        "survival": stack.survival,
        "class": stack.vma_class,
        "complete": stack.complete,
        "frames": [frame_values(frame) for frame in stack.frames],
    }


def frame_values(frame: Frame) -> dict[str, Any]:
    """A frame under the names of the contract."""
    return {
        "function": _text_or_none(frame.function),
        "function_offset": frame.function_offset,
        "module": _text_or_none(frame.module),
        "offset": frame.offset,
        "build_id": frame.build_id,
        "file": _text_or_none(frame.file),
        "line": frame.line,
        "inlined": frame.inlined,
        "language": frame.language,
        "address": frame.address,
    }


def _text_or_none(text: str | None) -> str | None:
    return None if text is None else _text(text)
