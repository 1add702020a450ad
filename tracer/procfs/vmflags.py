"""The codes of the line VmFlags in smaps, in words (Documentation/filesystems/proc.rst; fs/proc/task_mmu.c)."""

from __future__ import annotations

from typing import Final

MEANINGS: Final = {
    "rd": "readable",
    "wr": "writable",
    "ex": "executable",
    "sh": "shared",
    "mr": "may read",
    "mw": "may write",
    "me": "may execute",
    "ms": "may share",
    "gd": "stack segment that grows down",
    "pf": "pure page frame numbers",
    "dw": "writes to the mapped file were disabled",
    "gu": "may hold guard regions",
    "lo": "pages are locked in memory",
    "io": "memory-mapped I/O",
    "sr": "sequential read advised",
    "rr": "random read advised",
    "dc": "not copied on fork",
    "de": "not expanded on mremap",
    "lf": "locked on fault",
    "ac": "accounted",
    "nr": "no swap space reserved",
    "ht": "huge pages (hugetlb)",
    "sf": "synchronous page faults",
    "nl": "non-linear",
    "ar": "architecture-specific",
    "wf": "wiped on fork",
    "dd": "not in core dumps",
    "bt": "arm64 branch target identification",
    "mt": "arm64 memory tagging",
    "sd": "soft-dirty",
    "mm": "mixed map",
    "hg": "huge pages advised",
    "nh": "no huge pages advised (thread stacks have it)",
    "mg": "mergeable (KSM)",
    "um": "userfaultfd: missing pages",
    "uw": "userfaultfd: write protection",
    "ui": "userfaultfd: minor faults",
    "ss": "shadow stack",
    "dp": "droppable",
    "sl": "sealed",
    "??": "a flag without a code",
}


def meaning(code: str) -> str:
    """What a code says; one that is not known here is named as such."""
    return MEANINGS.get(code, "not known to this version of memtrace")
