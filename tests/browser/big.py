"""A report of tens of thousands of stacks, as a busy server makes; the same numbers give the same report."""

from __future__ import annotations

import random

from tests.unit.reports import LIBC, frame, sample_report, stack, vma
from tracer.model.report import Frame, LedgerRow, Report, StackGrowth, VmaGrowth
from tracer.model.vma import RssCounters

_MODULES = ("/usr/bin/server", "/usr/lib/libcore.so.4", "/usr/lib/libnet.so.2", "/usr/lib/libssl.so.3", LIBC)
_KINDS = ("malloc", "malloc", "malloc", "mmap", "fault", "brk")
_TRENDS = ("growing", "growing", "levelled-off", "steady", "unknown")


def big_report(stacks: int, vmas: int = 2_000, seed: int = 1) -> Report:
    """A report whose ledger closes: every stack is 8 to 27 frames deep, out of about 4,000 functions."""
    chance = random.Random(seed)
    functions = [_function(number, chance) for number in range(4_000)]
    made = sorted((_stack(number, functions, chance) for number in range(stacks)), key=lambda one: -one.bytes)
    rows = tuple(LedgerRow("heap", "live", one.id, one.bytes) for one in made)
    total = sum(row.bytes for row in rows)
    start = RssCounters(anon=1 << 30, file=1 << 26)
    areas = tuple(_vma(number, chance) for number in range(vmas))
    return sample_report(
        stacks=tuple(made),
        ledger=rows,
        classes=(),
        vmas=areas,
        rss_start=start,
        rss_end=RssCounters(anon=start.anon + total, file=start.file),
    )


def _function(number: int, chance: random.Random) -> Frame:
    module = chance.choice(_MODULES)
    return frame(
        f"namespace_{number % 37}::Class{number % 211}<int, std::string>::method_{number}(int, char const*)",
        module,
        0x1000 + 16 * number,
        function_offset=chance.randrange(512),
        build_id=f"{hash_of(module):040x}",
        file=f"/build/server/src/part{number % 37}/file{number % 211}.cc" if number % 3 else None,
        line=number if number % 3 else None,
    )


def hash_of(text: str) -> int:
    """A number for a text that is the same in every process, unlike ``hash``."""
    return sum(ord(letter) << (7 * index) for index, letter in enumerate(text[-16:]))


def _stack(number: int, functions: list[Frame], chance: random.Random) -> StackGrowth:
    # Few functions near the root, many near the leaves, as programs are.
    outer = [functions[min(depth * 3 + chance.randrange(1 + depth), 3_999)] for depth in range(chance.randrange(4, 12))]
    inner = [functions[int(3_999 * chance.random() ** 2)] for _ in range(chance.randrange(3, 15))]
    size = int(chance.paretovariate(0.9) * 320)
    return stack(
        f"{number:016x}",
        min(size, 1 << 24),
        kind=chance.choice(_KINDS),
        trend=chance.choice(_TRENDS),
        complete=chance.random() > 0.05,
        frames=(frame("malloc", LIBC, 0x9A0), *inner, *reversed(outer)),
    )


def _vma(number: int, chance: random.Random) -> VmaGrowth:
    growth = chance.choice((0, 0, 4096, 1 << 20, -8192))
    area = vma(0x7F0000000000 + number * (1 << 22), 1 << 21, _MODULES[number % 5].encode() if number % 2 else b"")
    return VmaGrowth(area, "file" if number % 2 else "anonymous", (1 << 20) + max(growth, 0), growth)
