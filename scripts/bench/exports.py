"""How long each form of a large report takes to write, and how large it is.

.venv/bin/python -m scripts.bench.exports [--stacks N]
"""

from __future__ import annotations

import argparse
import io
import random
import time
from dataclasses import replace

from tests.unit.reports import frame, sample_report, stack
from tracer.model.report import LedgerRow, Report
from tracer.report.formats import FORMATS, Choice


def large_report(stacks: int) -> Report:
    """A report with so many stacks of 8 to 40 frames, drawn from 5,000 functions with C++ names."""
    draw = random.Random(1)
    functions = [
        frame(
            f"ns{i % 40}::Class{i % 300}<std::vector<int, std::allocator<int> > >::method_{i}(int, char const*)",
            f"/usr/lib/lib{i % 60}.so",
            64 * i,
            address=0x7F0000000000 + 64 * i,
            line=i,
            file=f"src/file{i % 900}.cc",
        )
        for i in range(5000)
    ]
    found = tuple(
        stack(f"{i:016x}", 320 * draw.randint(1, 5000), frames=tuple(draw.choices(functions, k=draw.randint(8, 40))))
        for i in range(stacks)
    )
    ledger = tuple(LedgerRow("heap", "live", each.id, each.bytes) for each in found)
    return replace(sample_report(), stacks=found, ledger=ledger)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", type=int, default=77_000)
    report = large_report(parser.parse_args().stacks)
    print(f"| {len(report.stacks):,} stacks as | seconds | MiB |\n|---|---|---|")
    for form in FORMATS.values():
        if form.writer is None:
            continue
        binary, text = io.BytesIO(), io.StringIO()
        began = time.perf_counter()
        Choice(form).write(report, binary if form.binary else text)
        took = time.perf_counter() - began
        size = len(binary.getvalue()) if form.binary else len(text.getvalue())
        print(f"| {form.name} | {took:.2f} | {size / (1 << 20):.1f} |")


if __name__ == "__main__":
    main()
