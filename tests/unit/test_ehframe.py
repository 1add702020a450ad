"""Rows made of .eh_frame against binutils', hand-made sections, and damaged images."""

from __future__ import annotations

import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.readelf_rows import compare
from tracer.unwind.cfi import Expression, MalformedError, expression, sleb, uleb
from tracer.unwind.ehframe import REASON_NAMES, make_pages, make_rows, parse
from tracer.unwind.image import BytesSource, Segment, UnwindTableError, open_image
from tracer.unwind.rules import RULE_END, RULE_NONE, Cfa, Rbp, Reason, Rule, decode, encode, unsupported
from tracer.unwind.tables import ImageTable, table_of, table_of_file

LIBC = Path("/lib/x86_64-linux-gnu/libc.so.6")
BINARIES = (
    LIBC,
    Path("/lib64/ld-linux-x86-64.so.2"),
    Path("/usr/bin/env"),
    Path("/lib/x86_64-linux-gnu/libm.so.6"),
    Path("/usr/lib/x86_64-linux-gnu/libstdc++.so.6"),
)
TEXT = Segment(0x1000, 0x1000, 0x10000)
SECTION = 0x20000


def cie(augmentation: bytes = b"zR", data: bytes = b"\x1b", initial: bytes = b"\x0c\x07\x08\x90\x01") -> bytes:
    """Version 1, code alignment 1, data alignment -8, return address in 16; CFA = rsp + 8, RA at CFA - 8."""
    size = bytes([len(data)]) if augmentation else b""
    body = b"\0\0\0\0\x01" + augmentation + b"\0\x01\x78\x10" + size + data + initial
    return struct.pack("<I", len(body)) + body


def section(*functions: tuple[int, int, bytes], header: bytes | None = None) -> bytes:
    """One CIE and its FDEs (start, length, instructions)."""
    out = header if header is not None else cie()
    for start, length, code in functions:
        place = SECTION + len(out) + 8
        body = struct.pack("<IiI", len(out) + 4, start - place, length) + b"\0" + code
        out += struct.pack("<I", len(body)) + body
    return out


def rules_of(data: bytes) -> list[tuple[int, int]]:
    """(address, rule) of each row."""
    functions, _ = parse(data, SECTION)
    made = make_rows(functions, [TEXT])
    return [((row >> 32) + made.origin, row & 0xFFFFFFFF) for row in made.rows]


@pytest.mark.parametrize("path", BINARIES, ids=lambda path: path.name)
def test_rows_equal_readelfs(path: Path) -> None:
    if not path.exists() or shutil.which("readelf") is None:
        pytest.skip(f"needs {path} and readelf")
    with path.open("rb") as file:
        table = table_of_file(file.fileno())
    counts, wrong = compare(path, table)
    assert not wrong
    assert counts["equal"] > 10 * counts["special"]


def test_each_row_holds_up_to_the_next() -> None:
    push_and_grow = b"\x41\x0e\x10\x86\x02\x44\x0e\x40"  # +1: CFA rsp+16, rbp at CFA-16; +4: CFA rsp+64
    assert rules_of(section((0x1000, 0x20, push_and_grow))) == [
        (0x1000, encode(Cfa.RSP, 1)),
        (0x1001, encode(Cfa.RSP, 2, Rbp.CFA, -2)),
        (0x1005, encode(Cfa.RSP, 8, Rbp.CFA, -2)),
        (0x1020, RULE_NONE),
    ]


def test_a_gap_has_no_rule_but_padding_needs_no_row() -> None:
    rows = rules_of(section((0x1000, 0x10, b"\x0e\x10"), (0x1018, 8, b"\x0e\x10"), (0x1100, 8, b"\x0e\x10")))
    assert rows == [
        (0x1000, encode(Cfa.RSP, 2)),
        (0x1020, RULE_NONE),
        (0x1100, encode(Cfa.RSP, 2)),
        (0x1108, RULE_NONE),
    ]


def test_functions_are_sorted_and_the_later_start_wins_where_they_overlap() -> None:
    rows = rules_of(section((0x1010, 0x10, b"\x0e\x18"), (0x1000, 0x20, b"\x0e\x10")))
    assert rows == [(0x1000, encode(Cfa.RSP, 2)), (0x1010, encode(Cfa.RSP, 3)), (0x1020, RULE_NONE)]


def test_states_are_remembered_and_restored() -> None:
    code = b"\x0a\x41\x0e\x10\x41\x0b"
    assert [rule for _, rule in rules_of(section((0x1000, 4, code)))] == [
        encode(Cfa.RSP, 1),
        encode(Cfa.RSP, 2),
        encode(Cfa.RSP, 1),
        RULE_NONE,
    ]


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        (b"\x0c\x06\x10", encode(Cfa.RBP, 2)),
        (b"\x07\x10", RULE_END),
        (b"\x0f\x03\x76\x78\x06", encode(Cfa.DEREF_RBP, -1)),
        (b"\x0f\x05\x77\x10\x06\x23\x08", encode(Cfa.DEREF_RSP, 2 | 1 << 12)),
        (b"\x0f\x0b\x77\x08\x80\x00\x3f\x1a\x3b\x2a\x33\x24\x22", encode(Cfa.PLT, 11)),
        (b"\x10\x06\x02\x76\x00", encode(Cfa.RSP, 1, Rbp.RBP, 0)),
        (b"\x09\x06\x03", encode(Cfa.RSP, 1, Rbp.LOST)),
        (b"\x0d\x0a", unsupported(Reason.CFA_REGISTER)),
        (b"\x0f\x01\x30", unsupported(Reason.CFA_EXPRESSION)),
        (b"\x0e\x09", unsupported(Reason.CFA_OFFSET)),
        (b"\x90\x02", unsupported(Reason.RETURN_ADDRESS)),
        (b"\x3f", unsupported(Reason.BAD_INSTRUCTIONS)),
        (b"\x0e", unsupported(Reason.BAD_INSTRUCTIONS)),
    ],
)
def test_rules(code: bytes, rule: int) -> None:
    functions, _ = parse(section((0x1000, 16, code)), SECTION)
    made = make_rows(functions, [TEXT])
    assert made.rows[0] & 0xFFFFFFFF == rule
    reasons = [REASON_NAMES[Reason(rule >> 13)]] if rule & 15 == Cfa.UNSUP else []
    assert list(made.reasons) == reasons


def test_the_kernels_signal_frame_is_known() -> None:
    code = b"\x0f\x04\x77\xa0\x01\x06"
    assert rules_of(section((0x1000, 16, code), header=cie(b"zRS")))[0][1] == encode(Cfa.SIGNAL)
    assert rules_of(section((0x1000, 16, b""), header=cie(b"zRS")))[0][1] == unsupported(Reason.SIGNAL_FRAME)


def test_functions_outside_the_code_are_left_out_and_counted() -> None:
    functions, _ = parse(section((0x1000, 16, b""), (0x30000, 16, b""), (0x10FF8, 0x100, b"")), SECTION)
    made = make_rows(functions, [TEXT])
    assert made.reasons == {"function outside the image's code": 1}
    assert (made.rows[-1] >> 32) + made.origin == 0x11000
    with pytest.raises(UnwindTableError):
        make_rows(parse(section((0x30000, 16, b"")), SECTION)[0], [TEXT])


def test_a_damaged_entry_costs_only_itself() -> None:
    good = section((0x1000, 16, b""))
    orphan = struct.pack("<IIiI", 16, 0x7FFFFFFF, 0, 16) + bytes(4)
    functions, reasons = parse(good + orphan, SECTION)
    assert len(functions) == 1
    assert reasons == {"malformed entry": 1}


def test_pages_lead_to_the_row_in_force() -> None:
    functions, _ = parse(section(*((0x1000 + 24 * i, 20, b"\x43\x0e\x10") for i in range(200))), SECTION)
    rows = make_rows(functions, [TEXT]).rows
    pages = make_pages(rows)
    for address in range(0, rows[-1] >> 32, 7):
        first, count = pages[address >> 8] & 0xFFFFFFFF, pages[address >> 8] >> 32
        candidates = [i for i in range(first, first + count) if rows[i] >> 32 <= address]
        assert candidates[-1] == max(i for i, row in enumerate(rows) if row >> 32 <= address)


@given(st.sampled_from(Cfa), st.integers(0, (1 << 18) - 1), st.sampled_from(Rbp), st.integers(-64, 63))
def test_rules_decode_to_what_was_encoded(cfa: Cfa, units: int, rbp: Rbp, rbp_units: int) -> None:
    assert decode(encode(cfa, units, rbp, rbp_units)) == Rule(cfa, units * 8, rbp, rbp_units * 8)


def test_numbers() -> None:
    assert uleb(b"\xe5\x8e\x26", 0) == (624485, 3)
    assert sleb(b"\xc0\xbb\x78", 0) == (-123456, 3)
    for read in (uleb, sleb):
        with pytest.raises(MalformedError):
            read(b"\xff" * 100, 0)
        with pytest.raises(IndexError):
            read(b"\xff", 0)


def test_expressions() -> None:
    assert expression(b"\x77\x08") == Expression("reg", 7, 8)
    assert expression(b"\x76\x78\x06") == Expression("deref", 6, -8)
    assert expression(b"") == expression(b"\x03") == Expression("other")


def small_elf(eh_frame: bytes = b"", *, text: bytes = bytes(64), build_id: bytes = b"\xab" * 20) -> bytes:
    """An image whose code is at 0x1000 and whose .eh_frame, at SECTION, has a section header."""
    note = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
    names = b"\0.eh_frame\0.shstrtab\0"
    note_at = 0x200
    blocks = {note_at: note, 0x400: names, 0x1000: text, 0x2000: eh_frame}
    programs = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 0x1000, 0x1000, len(text), len(text), 0x1000)
    programs += struct.pack("<IIQQQQQQ", 4, 4, note_at, note_at, note_at, len(note), len(note), 4)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 2, SECTION, 0x2000, len(eh_frame), 0, 0, 8, 0)
    sections += struct.pack("<IIQQQQIIQQ", 11, 3, 0, 0, 0x400, len(names), 0, 0, 1, 0)
    blocks[0x600] = sections
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0x600, 0, 64, 56, 2, 64, 3, 2)
    image = bytearray(max(at + len(data) for at, data in blocks.items()))
    for at, data in {0: header, 64: programs, **blocks}.items():
        image[at : at + len(data)] = data
    return bytes(image)


def table(data: bytes) -> ImageTable:
    return table_of(BytesSource(data), None)


def test_an_image_gives_its_build_id_segments_and_table() -> None:
    data = small_elf(section((0x1000, 16, b"")))
    image = open_image(BytesSource(data))
    assert image.build_id == "ab" * 20
    assert image.segments == (Segment(0x1000, 0x1000, 64),)
    made = table(data)
    assert list(made.rows) == [encode(Cfa.RSP, 1), 16 << 32 | RULE_NONE]
    assert (list(made.pages), made.origin) == ([2 << 32], 0x1000)


def test_a_bare_signal_trampoline_is_found() -> None:
    text = bytes(48) + b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05" + bytes(23)
    made = table(small_elf(section((0x1000, 16, b"")), text=text))
    assert [(row >> 32, row & 15) for row in made.rows] == [(0, 1), (16, 0), (47, 4), (57, 0)]
    covered = table(small_elf(section((0x1000, 80, b"")), text=text))
    assert [row & 15 for row in covered.rows] == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:20], "not a 64-bit"),
        (lambda data: b"\x7fELF\x01" + data[5:], "not a 64-bit"),
        (lambda data: data[:18] + b"\xb7" + data[19:], "not an x86-64"),
        (lambda _: small_elf(), "no .eh_frame"),
        (lambda data: data[:0x600], "no .eh_frame"),
    ],
)
def test_what_has_no_table_says_why(change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(UnwindTableError, match=message):
        table(change(small_elf(section((0x1000, 16, b"")))))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_section_yields_functions_or_counts(data: bytes) -> None:
    functions, _ = parse(data, SECTION)
    if functions:
        try:
            rows = make_rows(functions, [TEXT]).rows
        except UnwindTableError:
            return
        assert list(rows) == sorted(rows)
        assert len(make_pages(rows)) == (rows[-1] >> 40) + 1


WHOLE = small_elf(
    section(*((0x1000 + 4 * i, 4, b"\x41\x0e\x10\x86\x02\x0a\x0b\x0f\x03\x76\x78\x06") for i in range(16)))
)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 99)
)
def test_a_damaged_image_yields_a_table_or_an_unwind_table_error(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    image = bytes(data[: len(data) - (cut if cut < 50 else 0)])
    started = time.process_time()
    try:
        made = table(image)
    except UnwindTableError:
        pass
    else:
        assert list(made.rows) == sorted(made.rows)
    assert time.process_time() - started < 5
