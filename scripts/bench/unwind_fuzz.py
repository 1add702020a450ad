"""Feeds damaged images to the unwind table builder: each must end in a table or an UnwindTableError, soon.

python -m scripts.bench.unwind_fuzz [--inputs N] [--seed N]
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from tests.unit.test_ehframe import WHOLE
from tracer.unwind.image import BytesSource, UnwindTableError
from tracer.unwind.tables import table_of

REAL = Path("/lib64/ld-linux-x86-64.so.2")
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def damage(data: bytes, source: random.Random) -> bytes:
    """Change bytes, fill runs, or cut the end off; most changes hit the headers or the last part of the file."""
    out = bytearray(data)
    for _ in range(source.randint(1, 12)):
        at = source.randrange(min(len(out), 0x800)) if source.random() < 0.3 else source.randrange(len(out))
        value = source.choice(INTERESTING) if source.random() < 0.5 else source.randrange(256)
        width = source.choice((1, 1, 1, 4, 8, 64))
        out[at : at + width] = bytes([value]) * len(out[at : at + width])
    return bytes(out[: source.randrange(len(out))] if source.random() < 0.1 else out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    source = random.Random(options.seed)
    real = REAL.read_bytes()
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for number in range(options.inputs):
        data = damage(real if number % 50 == 0 else WHOLE, source)
        started = time.perf_counter()
        try:
            made = table_of(BytesSource(data), None)
        except UnwindTableError as error:
            outcomes[str(error)] += 1
        else:
            outcomes["table"] += 1
            if list(made.rows) != sorted(made.rows):
                print(f"input {number} of seed {options.seed}: rows are not sorted")
                return 1
        slowest = max(slowest, time.perf_counter() - started)
    print(dict(outcomes.most_common()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"slowest {slowest * 1000:.0f} ms, peak memory {peak} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
