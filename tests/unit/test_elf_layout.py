"""The parts of mapped programs by their program headers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tracer.model.class_names import ClassRange
from tracer.model.elf_layout import ElfLayout, Load, image_ranges
from tracer.model.vma import Vma

PAGE = 0x1000
BASE = 0x7F0000000000
R, X, W = 4, 1, 2

# As ld lays a library out: headers and rodata, text, rodata, then relro and data that share a PT_LOAD with the bss.
LIBRARY = ElfLayout(
    (
        Load(R, 0, 0, 0x1234, 0x1234),
        Load(R | X, 0x2000, 0x2000, 0x2800, 0x2800),
        Load(R, 0x5000, 0x5000, 0x900, 0x900),
        Load(R | W, 0x5D00, 0x6D00, 0x1600, 0x4000),
    ),
    relro=((0x6D00, 0x8000),),
)
MAPPINGS = [
    (0x0000, 0x2000, "r--p", 0x0000),
    (0x2000, 0x5000, "r-xp", 0x2000),
    (0x5000, 0x6000, "r--p", 0x5000),
    (0x6000, 0x8000, "r--p", 0x5000),
    (0x8000, 0x9000, "rw-p", 0x7000),
]
PARTS = [
    (0x0000, 0x2000, "rodata"),
    (0x2000, 0x5000, "text"),
    (0x5000, 0x6000, "rodata"),
    (0x6000, 0x8000, "relro"),
    (0x8000, 0x9000, "data"),
]


def vma(start: int, end: int, perms: str, offset: int) -> Vma:
    return Vma(start, end, perms, offset, "fe:00", 7, b"/lib/libx.so")


def loaded(bias: int) -> list[Vma]:
    return [vma(bias + start, bias + end, perms, offset) for start, end, perms, offset in MAPPINGS]


def told(ranges: list[ClassRange], bias: int = BASE) -> list[tuple[int, int, str]]:
    return [(r.start - bias, r.end - bias, r.name) for r in ranges]


def test_each_segment_by_its_header() -> None:
    parts, bss = image_ranges(LIBRARY, loaded(BASE), "libx.so")
    assert told(parts) == PARTS
    assert told(bss) == [(0x9000, 0xB000, "bss")]
    assert {part.detail for part in (*parts, *bss)} == {"libx.so"}


def test_loaded_twice() -> None:
    other = BASE + (1 << 30)
    parts, bss = image_ranges(LIBRARY, [*loaded(BASE), *loaded(other)], "x")
    assert told(parts[: len(PARTS)]) == PARTS and told(parts[len(PARTS) :], other) == PARTS
    assert [r.start for r in bss] == [BASE + 0x9000, other + 0x9000]


def test_a_file_that_is_only_read_is_no_program() -> None:
    whole = vma(BASE, BASE + 0x8000, "r--p", 0)
    assert image_ranges(LIBRARY, [whole], "x") == ([], [])
    parts, _ = image_ranges(LIBRARY, [vma(BASE - (1 << 30), BASE - (1 << 30) + 0x8000, "r--p", 0), *loaded(BASE)], "x")
    assert told(parts) == PARTS, "also where it is loaded as well"


def test_code_that_was_mapped_elsewhere_is_no_program_either() -> None:
    # Node's V8 maps its own code again; the whole file may be mapped to be executed.
    fixed = ElfLayout(LIBRARY.loads, fixed=True)
    assert image_ranges(fixed, loaded(BASE), "x") == ([], [])
    assert told(image_ranges(fixed, loaded(0), "x")[0], 0)[1] == (0x2000, 0x5000, "text")


def test_before_relocation_relro_is_data() -> None:
    vmas = [*loaded(BASE)[:3], vma(BASE + 0x6000, BASE + 0x9000, "rw-p", 0x5000)]
    assert told(image_ranges(LIBRARY, vmas, "x")[0])[3:] == [(0x6000, 0x9000, "data")]


def test_relro_ends_on_a_page_boundary() -> None:
    layout = ElfLayout(LIBRARY.loads, relro=((0x6D00, 0x7F00),))
    assert told(image_ranges(layout, loaded(BASE), "x")[0])[3:5] == [
        (0x6000, 0x7000, "relro"),
        (0x7000, 0x8000, "data"),
    ]


def test_a_segment_of_nothing_but_bss() -> None:
    layout = ElfLayout((Load(R | X, 0, 0, 0x1000, 0x1000), Load(R | W, 0x1000, 0x4010, 0, 0x2000)))
    assert told(image_ranges(layout, [vma(BASE, BASE + PAGE, "r-xp", 0)], "x")[1]) == [(0x4000, 0x7000, "bss")]


@given(st.sets(st.integers(1, 8)), st.sets(st.integers(0, 4)))
def test_however_the_kernel_splits_them_the_parts_are_the_same(cuts: set[int], missing: set[int]) -> None:
    """VMAs split by mprotect or mlock, and parts that were unmapped, change nothing for the pages that are left."""
    vmas: list[Vma] = []
    for index, (start, end, perms, offset) in enumerate(MAPPINGS):
        edges = sorted({start, end} | {cut * PAGE for cut in cuts if start < cut * PAGE < end})
        for low, high in pairwise(edges):
            if index not in missing or index == 1:
                vmas.append(vma(BASE + low, BASE + high, perms, offset + low - start))
    parts, bss = image_ranges(LIBRARY, vmas, "x")
    found = {page: r.name for r in parts for page in range(r.start, r.end, PAGE)}
    expected = {
        BASE + page: name
        for index, (start, end, name) in enumerate(PARTS)
        for page in range(start, end, PAGE)
        if index not in missing or index == 1
    }
    assert found == expected
    assert told(bss) == [(0x9000, 0xB000, "bss")]
