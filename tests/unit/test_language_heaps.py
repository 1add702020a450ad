"""Heaps of runtimes by their addresses, and only where their runtime is there."""

from __future__ import annotations

import pytest

from tracer.model.classes import ProcessFacts, classify_ranges
from tracer.model.language_heaps import may_be_go, runs_python
from tracer.model.vma import Vma

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


def vma(start: int, size: int, perms: str = "rw-p", path: bytes = b"") -> Vma:
    return Vma(start, start + size, perms, 0, "fe:00" if path else "00:00", 7 if path else 0, path)


def told(vmas: list[Vma], *, is_go: bool = False) -> list[tuple[str, str]]:
    rows = [(row, ()) for row in sorted(vmas, key=lambda row: row.start)]
    return [(r.name, r.detail) for r in classify_ranges(rows, ProcessFacts(is_go=is_go)) if r.name != "text"]


JVM = vma(0x7F0000000000, MIB, "r-xp", b"/jvm/lib/server/libjvm.so")
MI = vma(0x7F0000000000, MIB, "r-xp", b"/usr/lib/libmimalloc.so.2")


def test_go() -> None:
    heap = [vma(0xC000000000, 4 * MIB), vma(0xC000400000, 60 * MIB, "---p"), vma(0x7E0000000000, MIB)]
    expected = [("anonymous", "go heap"), ("reserve", "go heap"), ("anonymous", "")]
    assert told(heap, is_go=True) == expected
    assert {detail for _, detail in told(heap)} == {""}
    assert may_be_go(heap) and not may_be_go(heap[1:])


@pytest.mark.parametrize("end", [4 * GIB, 32 * GIB])
def test_java(end: int) -> None:
    heap = [
        vma(end - 60 * MIB, 10 * MIB),
        vma(end - 50 * MIB, 40 * MIB, "---p"),
        vma(end - 10 * MIB, MIB, "rw-p", b"/jvm/classes.jsa"),
        vma(end - 9 * MIB, 9 * MIB),
    ]
    other = vma(end - 100 * MIB, 5 * MIB)
    expected = [
        ("anonymous", ""),
        ("anonymous", "java heap"),
        ("reserve", "java heap"),
        ("file", "classes.jsa"),
        ("anonymous", "java heap"),
    ]
    assert told([JVM, other, *heap]) == expected
    assert {detail for name, detail in told([other, *heap]) if name != "file"} == {""}, "without a JVM"
    assert told([JVM, *heap[:-1], vma(end - 9 * MIB, 8 * MIB)])[-1] == ("anonymous", ""), "it does not end there"


def test_java_whose_heap_has_grown_together_with_what_is_behind() -> None:
    assert told([JVM, vma(32 * GIB - MIB, 2 * MIB)]) == [("anonymous", "java heap"), ("anonymous", "")]


def test_mimalloc() -> None:
    blocks = [vma(2 * TIB + GIB, 65 * MIB), vma(31 * TIB, MIB)]
    assert told([MI, *blocks]) == [("anonymous", "mimalloc"), ("anonymous", "")]
    assert told(blocks) == [("anonymous", ""), ("anonymous", "")]


@pytest.mark.parametrize(
    ("path", "perms", "expected"),
    [
        (b"/usr/bin/python3.11", "r-xp", True),
        (b"/usr/lib/libpython3.13.so.1.0", "r-xp", True),
        (b"/usr/bin/python3.11", "r--p", False),
        (b"/usr/lib/python3/dist-packages/x.so", "r-xp", False),
        (b"/usr/bin/perl", "r-xp", False),
    ],
)
def test_python(path: bytes, perms: str, expected: bool) -> None:
    assert runs_python([vma(GIB, MIB, perms, path)]) is expected
