"""The rows that binutils' own interpreter prints (`readelf -wF`), beside those of tracer.unwind."""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tracer.unwind.rules import Cfa, Rbp, decode
from tracer.unwind.tables import ImageTable

_FDE = re.compile(r"pc=([0-9a-f]+)\.\.([0-9a-f]+)")
_CFA_NAMES = {Cfa.RSP: "rsp", Cfa.RBP: "rbp"}


def readelf_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(address, {"CFA": ..., "rbp": ..., "ra": ...}) of each row of each function."""
    process = subprocess.Popen(
        ["readelf", "-wF", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    columns: list[str] = []
    end = 0
    in_function = False
    with process:
        for line in process.stdout:
            if " FDE cie=" in line:
                found = _FDE.search(line)
                assert found is not None
                in_function, end = True, int(found[2], 16)
                continue
            if " CIE " in line:
                in_function = False
                continue
            fields = re.sub(r"(r\d+) \([^)]*\)", r"\1", line).split()
            if len(fields) > 2 and fields[0] == "LOC":
                columns = fields
            elif in_function and fields and re.fullmatch(r"[0-9a-f]{16}", fields[0]) and int(fields[0], 16) < end:
                yield int(fields[0], 16), dict(zip(columns, fields, strict=False))


def compare(path: Path, table: ImageTable) -> tuple[Counter[str], list[str]]:
    """Counts of rows that are "equal", "special" (no numbers to compare) or "wrong", and the wrong ones."""
    counts: Counter[str] = Counter()
    wrong = []
    addresses = [row >> 32 for row in table.rows]
    for address, theirs in readelf_rows(path):
        row = table.rows[bisect_right(addresses, address - table.origin) - 1]
        verdict = _verdict(row & 0xFFFFFFFF, theirs)
        counts[verdict] += 1
        if verdict == "wrong":
            wrong.append(f"{address:#x}: {decode(row & 0xFFFFFFFF)} against {theirs}")
    return counts, wrong


def _verdict(rule: int, theirs: dict[str, str]) -> str:
    ours = decode(rule)
    if ours.cfa is Cfa.END:
        return "equal" if theirs.get("ra") == "u" else "wrong"
    if theirs["CFA"] == "exp" or theirs.get("rbp") == "exp" or ours.cfa is Cfa.UNSUP:
        return "special"
    rbp = {
        Rbp.SAME: "u",
        Rbp.CFA: f"c{ours.rbp_offset:+d}",
        Rbp.RBP: "exp",
        Rbp.LOST: "lost",
    }[ours.rbp]
    cfa = f"{_CFA_NAMES.get(ours.cfa, ours.cfa.name)}+{ours.offset}"
    their_rbp = theirs.get("rbp", "u").replace("s", "u")
    return "equal" if (cfa, rbp) == (theirs["CFA"], their_rbp) else "wrong"
