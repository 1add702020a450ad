"""The attach safety matrix as a Markdown table: each program attached and detached in ten ways, and what came of it.

The ends of memtrace are -d, SIGINT, SIGTERM, SIGKILL and a closed terminal, while it attaches, traces and detaches.
It exits with 1 if any program was harmed, and says how on stderr.

    sudo python -m scripts.bench.safety [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.bpf.safety import HEADINGS, SUBJECTS, WAYS, cells, trial


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="go N times through the ten ways")
    rounds = parser.parse_args().rounds
    if os.geteuid() != 0:
        parser.error("tracing needs root")
    harmed = False
    print_row(HEADINGS)
    print_row(["---"] * len(HEADINGS))
    with tempfile.TemporaryDirectory() as directory:
        for name in SUBJECTS:
            row = trial(name, Path(directory), WAYS * rounds)
            print_row(cells(row))
            for detail in row.details:
                print(f"{name}: {detail}", file=sys.stderr)
            harmed |= not row.is_safe
    return int(harmed)


def print_row(words: list[str] | tuple[str, ...]) -> None:
    print(f"| {' | '.join(words)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
