"""The .eh_frame section of an x86-64 image as sorted rows for the unwinder in the kernel.

What is malformed costs its own function only: that is left without rows, or gets UNSUP rows, and is counted. Work and
memory are linear in the section's size.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .cfi import Cie, Interpreter, MalformedError, Program, State, sleb, uleb
from .image import PE_OMIT, Segment, UnwindTableError
from .rules import RULE_NONE, Reason

EXTENDED_LENGTH = 0xFFFFFFFF
# Gaps up to this are padding between functions, which nothing executes: they need no row of their own.
PADDING = 16
PAGE_SHIFT = 8
MAX_SPAN = 1 << 30
NO_PROGRAM = "malformed entry"
OUTSIDE_CODE = "function outside the image's code"
REASON_NAMES = {
    Reason.CFA_REGISTER: "CFA in another register",
    Reason.CFA_EXPRESSION: "CFA by expression",
    Reason.CFA_OFFSET: "CFA offset out of range",
    Reason.RETURN_ADDRESS: "return address not below the CFA",
    Reason.SIGNAL_FRAME: "unknown signal frame",
    Reason.BAD_INSTRUCTIONS: "malformed instructions",
}
# DW_EH_PE formats with a fixed size: low 4 bits -> struct code and size.
_POINTER_FORMATS = {
    0x0: ("Q", 8),
    0x2: ("H", 2),
    0x3: ("I", 4),
    0x4: ("Q", 8),
    0xA: ("h", 2),
    0xB: ("i", 4),
    0xC: ("q", 8),
}
_PCREL = 0x10
_FAST_ENCODING = 0x1B  # pc-relative, signed, 4 bytes: what every x86-64 linker writes
_START_AND_LENGTH = struct.Struct("<iI")
_WORD = struct.Struct("<I")
_ERRORS = (MalformedError, IndexError, struct.error)


class Function(NamedTuple):
    """The rows of one function: its first address, its length in bytes, and the rows relative to that address."""

    start: int
    length: int
    program: Program


class Rows(NamedTuple):
    """`rows` are relative to the address `origin`, a multiple of 256; the first is at 0."""

    rows: array[int]
    origin: int
    reasons: Counter[str]


def parse(data: bytes, address: int, *, terminated: bool = False) -> tuple[list[Function], Counter[str]]:
    """The functions of a section that lies at `address`, and what was malformed; ends at a terminator if told so."""
    functions: list[Function] = []
    reasons: Counter[str] = Counter()
    entries = _Entries(data, address)
    at, end = 0, len(data)
    while at + 4 <= end:
        (size,) = _WORD.unpack_from(data, at)
        if not size:
            if terminated:
                break
            at += 4  # a linker may leave one in the middle
            continue
        body = at + 4
        if size == EXTENDED_LENGTH:
            size = int.from_bytes(data[body : body + 8], "little")
            body += 8
        after = body + size
        if after > end or size < 4:
            reasons[NO_PROGRAM] += 1
            break
        (distance,) = _WORD.unpack_from(data, body)
        if distance:
            try:
                function = entries.function(body, body - distance, after)
            except _ERRORS:
                reasons[NO_PROGRAM] += 1
            else:
                if function.length:
                    functions.append(function)
        at = after
    return functions, reasons


class _Entries:
    """Decodes CIEs and FDEs; equal instruction bytes of one CIE are run once."""

    def __init__(self, data: bytes, address: int) -> None:
        self._data = data
        self._address = address
        self._interpreter = Interpreter()
        self._cies: dict[int, tuple[Cie, dict[bytes, Program]] | None] = {}

    def function(self, at: int, cie_at: int, end: int) -> Function:
        """The FDE whose CIE pointer is at `at`."""
        found = self._cies.get(cie_at, ...)
        if found is ...:
            found = self._cies[cie_at] = self._cie(cie_at)
        if found is None:
            raise MalformedError("no CIE")
        cie, programs = found
        data, at = self._data, at + 4
        if cie.pointer_encoding == _FAST_ENCODING:
            start, length = _START_AND_LENGTH.unpack_from(data, at)
            start += self._address + at
            at += 8
        else:
            start, length, at = self._pointers(cie.pointer_encoding, at)
        if cie.has_augmentation:
            size, at = uleb(data, at)
            at += size
        if at > end:
            raise MalformedError("cut off")
        code = data[at:end]
        program = programs.get(code)
        if program is None:
            program = programs[code] = self._interpreter.program(cie, code)
        return Function(start, length, program)

    def _pointers(self, encoding: int, at: int) -> tuple[int, int, int]:
        form = _POINTER_FORMATS.get(encoding & 0x0F)
        if form is None or encoding & 0xF0 not in (0, _PCREL):
            raise MalformedError("pointer encoding")
        code, size = form
        (start,) = struct.unpack_from("<" + code, self._data, at)
        if encoding & 0xF0 == _PCREL:
            start = (start + self._address + at) & (1 << 64) - 1
        (length,) = struct.unpack_from("<" + code.upper(), self._data, at + size)
        return start, length, at + 2 * size

    def _cie(self, at: int) -> tuple[Cie, dict[bytes, Program]] | None:
        if at < 0:
            return None
        try:
            return self._read_cie(at), {}
        except _ERRORS:
            return None

    def _read_cie(self, at: int) -> Cie:
        data = self._data
        (size,) = _WORD.unpack_from(data, at)
        at += 4
        if size == EXTENDED_LENGTH:
            size = int.from_bytes(data[at : at + 8], "little")
            at += 8
        end = at + size
        if end > len(data) or _WORD.unpack_from(data, at)[0]:
            raise MalformedError("no CIE")
        version = data[at + 4]
        name_end = data.find(b"\0", at + 5, end)
        if name_end < 0:
            raise MalformedError("augmentation")
        augmentation = data[at + 5 : name_end]
        at = name_end + 1
        if version not in (1, 3, 4) or augmentation[:1] not in (b"", b"z"):
            raise MalformedError("CIE version or augmentation")
        if version == 4:
            at += 2  # address size, segment size
        code_align, at = uleb(data, at)
        data_align, at = sleb(data, at)
        if version == 1:
            return_register = data[at]
            at += 1
        else:
            return_register, at = uleb(data, at)
        encoding, is_signal = 0, False
        if augmentation:
            length, at = uleb(data, at)
            encoding, is_signal = _augmentation(data, at, augmentation)
            at += length
        if at > end:
            raise MalformedError("cut off")
        cie = Cie(code_align, data_align, return_register, encoding, bool(augmentation), is_signal, State())
        return cie._replace(initial=self._interpreter.initial_state(cie, data[at:end]))


def _augmentation(data: bytes, at: int, letters: bytes) -> tuple[int, bool]:
    """The pointer encoding and whether the CIE is of signal frames."""
    encoding, is_signal = 0, False
    for letter in letters[1:]:
        if letter == ord("R"):
            encoding = data[at]
            at += 1
        elif letter == ord("L"):
            at += 1
        elif letter == ord("P"):
            form = data[at]
            at += 1
            if form != PE_OMIT:
                if form & 0x0F not in _POINTER_FORMATS:
                    raise MalformedError("pointer encoding")
                at += _POINTER_FORMATS[form & 0x0F][1]
        elif letter == ord("S"):
            is_signal = True
        else:
            break
    return encoding, is_signal


def make_rows(functions: list[Function], segments: Sequence[Segment], *, max_rows: int = 1 << 24) -> Rows:
    """Lay the functions' rows out by address. Sorts `functions`. Raises UnwindTableError where none is left."""
    reasons: Counter[str] = Counter()
    functions.sort(key=_start)
    inside = _inside(functions, segments)
    if len(inside) != len(functions):
        reasons[OUTSIDE_CODE] = len(functions) - len(inside)
    if not inside:
        raise UnwindTableError("no function has unwind information")
    origin = inside[0][0] & -1 << PAGE_SHIFT
    if inside[-1][0] + inside[-1][1] - origin > MAX_SPAN:
        raise UnwindTableError("the code is spread over more than 1 GiB")
    rows = array("Q")
    append = rows.append
    last, end = RULE_NONE, 0
    if inside[0][0] > origin:
        append(RULE_NONE)
    else:
        last = -1
    for address, length, program in inside:
        start = address - origin
        if start < end:  # overlaps the one before: the later start wins
            while rows and rows[-1] >> 32 >= start:
                rows.pop()
            last = rows[-1] & 0xFFFFFFFF if rows else -1
        elif start - end > PADDING and last != RULE_NONE and rows:
            append(end << 32 | RULE_NONE)
            last = RULE_NONE
        end = start + length
        for distance, rule in program.rows:
            if distance >= length:
                break
            if rule != last:
                append(start + distance << 32 | rule)
                last = rule
        if program.reasons:
            reasons.update(REASON_NAMES[reason] for reason in program.reasons)
        if len(rows) > max_rows:
            raise UnwindTableError("too many rows")
    append(end << 32 | RULE_NONE)
    return Rows(rows, origin, reasons)


def _start(function: Function) -> int:
    return function.start


def _inside(functions: Iterable[Function], segments: Sequence[Segment]) -> list[Function]:
    """The functions that start in code; those that run on beyond it are cut off there."""
    starts = [segment.address for segment in segments]
    out = []
    for function in functions:
        index = bisect_right(starts, function.start) - 1
        if index < 0:
            continue
        left = segments[index].address + segments[index].size - function.start
        if left > 0:
            out.append(function if function.length <= left else function._replace(length=left))
    return out


def make_pages(rows: array[int]) -> array[int]:
    """For each 256 bytes: the number of the row in force at their start | how many rows matter there << 32."""
    pages = array("Q")
    count, index = len(rows), 0
    for page in range((rows[-1] >> 32 + PAGE_SHIFT) + 1):
        begin, end = page << 32 + PAGE_SHIFT, page + 1 << 32 + PAGE_SHIFT
        while index + 1 < count and rows[index + 1] < begin:
            index += 1
        first = index
        while index + 1 < count and rows[index + 1] < end:
            index += 1
        pages.append(first | index - first + 1 << 32)
    return pages
