"""Where a function can return: its ``ret`` instructions and those of the functions that it jumps to.

A return probe on a function that may throw ends the target (the unwinder meets the kernel's trampoline instead of a
caller), so the result of operator new is taken by plain probes on the ``ret`` instructions. Tail calls lead to other
functions, whose ``ret`` then returns to our caller. A site too many costs a trap and no more, as the kernel's side
compares the stack pointer with that at entry; one too few would lose allocations, so ``complete`` says whether all
were found. A breakpoint inside of an instruction would break the target: what does not decode cleanly is refused.
"""

from __future__ import annotations

import importlib
import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from tracer.symbols.elf import EM_X86_64, PT_GNU_EH_FRAME, ElfImage
from tracer.symbols.elftypes import ElfError

MAX_DEPTH = 4
MAX_SITES = 64
MAX_FUNCTION = 64 << 10
NO_CAPSTONE = "python3-capstone is not installed"

_ENDBR64 = b"\xf3\x0f\x1e\xfa"


@dataclass(frozen=True, slots=True)
class ReturnSites:
    """File offsets of ``ret`` instructions; where ``complete`` is False, ``reason`` says why there may be others."""

    offsets: tuple[int, ...]
    complete: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Jump:
    """A direct branch instruction at ``vaddr``; ``target`` is an image address."""

    vaddr: int
    target: int


@dataclass(slots=True)
class _Swept:
    """What the instructions of one function showed."""

    starts: set[int] = field(default_factory=set)
    returns: list[int] = field(default_factory=list)
    jumps: list[Jump] = field(default_factory=list)
    problem: str = ""


class _Incomplete(Exception):
    """Some return cannot be found; the message says why."""


def disassembler(image: ElfImage) -> tuple[Any | None, str]:
    """A capstone disassembler for the image's code, or None and the reason why there is none."""
    if image.machine != EM_X86_64:
        return None, "only x86-64 code is disassembled"
    try:
        capstone = importlib.import_module("capstone")
    except ImportError:
        return None, NO_CAPSTONE
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64), ""


def return_sites(image: ElfImage, vaddr: int, size: int) -> ReturnSites:
    """The ``ret`` instructions through which the function at ``vaddr`` (``size`` bytes, 0: unknown) may return."""
    decoder, reason = disassembler(image)
    if decoder is None:
        return ReturnSites((), False, reason)
    found: set[int] = set()
    try:
        _collect(image, decoder, vaddr, size, found)
    except (_Incomplete, ElfError) as error:
        return ReturnSites(tuple(sorted(found)), False, str(error))
    return ReturnSites(tuple(sorted(found)), bool(found), "" if found else "no return instruction was found")


def jump_target(image: ElfImage, vaddr: int) -> int | None:
    """Where the function at ``vaddr`` ends up if it is nothing but a jump (also through the PLT), else None.

    None, too, where the jump leaves the image. Needs no disassembler.
    """
    target = _first_jump(image, vaddr)
    return None if target is None else through_plt(image, target)


def through_plt(image: ElfImage, vaddr: int) -> int | None:
    """``vaddr`` itself, or what a PLT entry at ``vaddr`` leads to; None where that is in another file."""
    slot = _slot_jump(_code(image, vaddr, 16), vaddr)
    if slot is None or slot not in image.slots:
        return vaddr
    return image.slots[slot]


def _first_jump(image: ElfImage, vaddr: int) -> int | None:
    code = _code(image, vaddr, 16)
    skip = len(_ENDBR64) if code.startswith(_ENDBR64) else 0
    if code[skip : skip + 1] == b"\xe9" and len(code) >= skip + 5:
        return vaddr + skip + 5 + int(struct.unpack_from("<i", code, skip + 1)[0])
    if code[skip : skip + 1] == b"\xeb" and len(code) >= skip + 2:
        return vaddr + skip + 2 + int(struct.unpack_from("<b", code, skip + 1)[0])
    slot = _slot_jump(code, vaddr)
    return vaddr if slot is not None and slot in image.slots else None


def _slot_jump(code: bytes, vaddr: int) -> int | None:
    """The slot through which ``[endbr64] [bnd] jmp *slot(%rip)`` jumps."""
    at = len(_ENDBR64) if code.startswith(_ENDBR64) else 0
    at += code[at : at + 1] == b"\xf2"
    if code[at : at + 2] != b"\xff\x25" or len(code) < at + 6:
        return None
    return vaddr + at + 6 + int(struct.unpack_from("<i", code, at + 2)[0])


def _code(image: ElfImage, vaddr: int, size: int) -> bytes:
    try:
        return image.read_vaddr(vaddr, size) if image.machine == EM_X86_64 else b""
    except ElfError:
        return b""


def _collect(image: ElfImage, decoder: Any, vaddr: int, size: int, found: set[int]) -> None:
    """Adds to ``found`` the file offsets of all returns; raises _Incomplete where some remain unknown."""
    todo = [(vaddr, 0)]
    ranges: list[tuple[int, int]] = []
    while todo:
        target, depth = todo.pop()
        if any(start <= target < end for start, end in ranges):
            continue
        start, end = function_range(image, target) if depth or not size else (vaddr, vaddr + size)
        if end - start > MAX_FUNCTION:
            raise _Incomplete(f"the function at {start:#x} is too large")
        ranges.append((start, end))
        swept = _sweep(image, decoder, start, end)
        found.update(offset for at in swept.returns if (offset := image.file_offset_of(at)) is not None)
        if swept.problem:
            raise _Incomplete(swept.problem)
        outside = {_tail(image, jump.target) for jump in swept.jumps if not start <= jump.target < end}
        outside = {address for address in outside if not any(first <= address < last for first, last in ranges)}
        if (outside and depth == MAX_DEPTH) or len(found) > MAX_SITES:
            raise _Incomplete("it jumps through too many functions")
        todo += [(address, depth + 1) for address in sorted(outside)]


def _tail(image: ElfImage, target: int) -> int:
    resolved = through_plt(image, target)
    if resolved is None or not image.is_executable_vaddr(resolved):
        raise _Incomplete("it jumps into another file")
    return resolved


def _sweep(image: ElfImage, decoder: Any, start: int, end: int) -> _Swept:
    """Decodes a function from start to end."""
    swept = _Swept()
    history: list[tuple[str, str]] = []
    at = start
    for at, length, mnemonic, operands in decoder.disasm_lite(_code(image, start, end - start), start):
        swept.starts.add(at)
        verb = mnemonic.rpartition(" ")[2]
        if verb == "ret":
            swept.returns.append(at)
        elif verb.startswith("j"):
            _note_jump(image, swept, Jump(at, 0), operands, history)
        history.append((verb, operands))
        at += length
    if at < end:
        swept.problem = f"the code at {at:#x} cannot be decoded"
    inside = {jump.target for jump in swept.jumps if start <= jump.target < end}
    if not inside <= swept.starts:
        swept.problem = f"the code at {start:#x} cannot be decoded reliably"
        swept.returns.clear()
    return swept


def _note_jump(image: ElfImage, swept: _Swept, jump: Jump, operands: str, history: list[tuple[str, str]]) -> None:
    if operands.startswith("0x"):
        swept.jumps.append(Jump(jump.vaddr, int(operands, 16)))
    elif "rip" in operands:
        # The slot is within the instruction's own bytes; decode them rather than the text.
        slot = _slot_jump(_code(image, jump.vaddr, 16), jump.vaddr)
        target = image.slots.get(slot) if slot is not None else None
        if target is None:
            swept.problem = "it jumps into another file"
        else:
            swept.jumps.append(Jump(jump.vaddr, target))
    elif not _is_jump_table(operands, history[-12:]):
        swept.problem = "it jumps to an address that is computed at run time"


def _is_jump_table(operands: str, history: list[tuple[str, str]]) -> bool:
    """True for the two forms in which compilers write a switch: its targets are inside of the function.

    ``jmp *table(,%reg,8)``, and ``movslq (%table,%reg,4), %a; add %table, %a; jmp *%a``.
    """
    if "*8" in operands:
        return True
    loads = any(verb == "movsxd" and "*4]" in text for verb, text in history)
    adds = any(verb == "add" and text.startswith(operands + ",") for verb, text in history)
    return loads and adds


def function_range(image: ElfImage, vaddr: int) -> tuple[int, int]:
    """Start and end of the function that covers ``vaddr``, by .eh_frame or a symbol; raises ElfError if unknown."""
    found = _frame_range(image, vaddr) or _symbol_range(image, vaddr)
    if found is None:
        raise ElfError(f"the extent of the function at {vaddr:#x} is not known")
    return found


def _symbol_range(image: ElfImage, vaddr: int) -> tuple[int, int] | None:
    starts, sizes = image.functions
    last = bisect_right(starts, vaddr)
    for start, size in zip(starts[max(0, last - 8) : last], sizes[max(0, last - 8) : last], strict=True):
        if vaddr - start < size:
            return start, start + size
    return None


def _frame_range(image: ElfImage, vaddr: int) -> tuple[int, int] | None:
    """By .eh_frame_hdr's sorted table (LSB core, "Exception Frames"), in the one encoding that linkers write."""
    header = next((s for s in image.segments if s.type == PT_GNU_EH_FRAME), None)
    if header is None:
        return None
    try:
        data = image.read(header.offset, min(header.filesz, 64 << 20))
    except ElfError:
        return None
    if len(data) < 12 or data[:4] != b"\x01\x1b\x03\x3b":
        return None
    low, high = 0, min(int(struct.unpack_from("<I", data, 8)[0]), (len(data) - 12) // 8)
    while low < high:
        middle = (low + high) // 2
        start = header.vaddr + int(struct.unpack_from("<i", data, 12 + 8 * middle)[0])
        low, high = (middle + 1, high) if start <= vaddr else (low, middle)
    if not low:
        return None
    start, entry = struct.unpack_from("<ii", data, 12 + 8 * (low - 1))
    return _entry_range(image, header.vaddr + start, header.vaddr + entry, vaddr)


def _entry_range(image: ElfImage, start: int, entry: int, vaddr: int) -> tuple[int, int] | None:
    """The FDE at ``entry``: length, CIE, start relative to itself, size. None where it does not cover ``vaddr``."""
    data = _code(image, entry, 16)
    if len(data) < 16:
        return None
    _, _, relative, size = struct.unpack("<IIiI", data)
    if entry + 8 + relative != start or not start <= vaddr < start + size:
        return None
    return start, start + size
