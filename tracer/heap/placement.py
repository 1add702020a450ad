"""Where in a function's first instructions a probe is cheapest.

The kernel emulates some instructions under a uprobe (0.7 µs a hit) and single-steps all others out of line (9 µs). It
emulates push of a register, one-byte nop, direct jmp and jcc, and call: ``push_setup_xol_ops`` and
``branch_setup_xol_ops`` in arch/x86/kernel/uprobes.c (4.19 and later). Longer nops are emulated only from 6.18 on and
do not count here. So a probe is moved to the first such instruction, as long as every call passes it once and what
the probe reads is still as it was at the function's entry.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from tracer.heap.allocators import AllocatorImage, AllocShape, ProbeSite
from tracer.heap.returns import disassembler
from tracer.symbols.elf import ElfImage
from tracer.symbols.elftypes import ElfError

MAX_PROLOGUE = 192
MAX_FUNCTION = 64 << 10

_JCC_SHORT = range(0x70, 0x80)
_JCC_NEAR = range(0x80, 0x90)
_PUSH = range(0x50, 0x58)
_ARGUMENTS = ("rdi", "rsi", "rdx")
_ALIASES = {
    "rdi": "rdi", "edi": "rdi", "di": "rdi", "dil": "rdi",
    "rsi": "rsi", "esi": "rsi", "si": "rsi", "sil": "rsi",
    "rdx": "rdx", "edx": "rdx", "dx": "rdx", "dl": "rdx", "dh": "rdx",
    "rsp": "rsp", "esp": "rsp", "sp": "rsp", "spl": "rsp",
}  # fmt: skip

# What a probe at the entry of a function of each shape reads: arguments, and the stack (return address, unwinding).
REGISTERS: Mapping[AllocShape, tuple[str, ...]] = MappingProxyType(
    {
        shape: (*_ARGUMENTS[:count], "rsp")
        for shape, count in {
            AllocShape.MALLOC: 1,
            AllocShape.NEW: 1,
            AllocShape.CALLOC: 2,
            AllocShape.REALLOC: 2,
            AllocShape.MEMALIGN: 2,
            AllocShape.REALLOCARRAY: 3,
            AllocShape.POSIX_MEMALIGN: 3,
        }.items()
    }
    | {AllocShape.FREE: ("rdi",), AllocShape.DELETE: ("rdi",)}
)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where to put a probe: ``offset`` in the file, the ``instruction`` there, whether the kernel emulates it.

    Where it does not, the offset is the function's first instruction and ``reason`` says why there is no better one.
    """

    offset: int
    instruction: str
    emulated: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Instruction:
    vaddr: int
    code: bytes
    text: str
    written: frozenset[str]
    target: int | None

    @property
    def end(self) -> int:
        return self.vaddr + len(self.code)


def emulated_offset(image: ElfImage, vaddr: int, size: int, *, registers: Sequence[str]) -> Placement:
    """The best place for an entry probe on the function at ``vaddr`` (``size`` bytes, 0: unknown).

    ``registers`` (of rdi, rsi, rdx, rsp) must be unchanged there. Without rsp, as for free, the probe may also stand
    behind a test for NULL, so that free(NULL), which frees nothing, is not seen. Raises ElfError where the function is
    outside of the file.
    """
    start = image.file_offset_of(vaddr)
    if start is None:
        raise ElfError("the function is not in the file")
    decoder, reason = disassembler(image)
    code = image.read_vaddr(vaddr, min(size or MAX_PROLOGUE, MAX_FUNCTION))
    if decoder is None or is_emulated(code):
        return Placement(start, _first_text(decoder, code, vaddr), is_emulated(code), reason)
    if size > MAX_FUNCTION or not size:
        return Placement(start, "", False, "the function's size is not known")
    body, branches = _decode(decoder, code, vaddr)
    chosen = _choose(body, frozenset(registers))
    if chosen is None:
        return Placement(start, body[0].text if body else "", False, "no emulated instruction comes early enough")
    if any(vaddr < target < chosen.end for target in branches) or _has_symbol_between(image, vaddr, chosen.end):
        return Placement(start, body[0].text, False, "the function jumps back into its first instructions")
    return Placement(start + chosen.vaddr - vaddr, chosen.text, True)


def place(image: ElfImage, allocator: AllocatorImage) -> AllocatorImage:
    """The allocator with its entry and return sites moved to the cheapest places.

    A return site goes where the entry site goes, so that the two share one trap: with the stack pointer as at entry
    the kernel finds the return address there just as well.
    """
    return replace(allocator, sites=tuple(_placed(image, site) for site in allocator.sites))


def _placed(image: ElfImage, site: ProbeSite) -> ProbeSite:
    if site.kind == "ret-instruction":
        return site
    placement = emulated_offset(image, site.vaddr, site.size, registers=REGISTERS[site.shape])
    return replace(site, file_offset=placement.offset)


def is_emulated(code: bytes) -> bool:
    """True where the instruction at the start of ``code`` is one that every kernel from 5.10 on emulates."""
    if not code:
        return False
    first = code[0]
    if first in _PUSH or (first == 0x41 and len(code) > 1 and code[1] in _PUSH):
        return True
    if first in (0x90, 0xE8, 0xE9, 0xEB) or first in _JCC_SHORT or code[:2] == b"\x66\x90":
        return True
    return first == 0x0F and len(code) > 1 and code[1] in _JCC_NEAR


def _choose(body: Sequence[_Instruction], needed: frozenset[str]) -> _Instruction | None:
    """The first emulated instruction on the straight way from the entry that meets ``needed``.

    A conditional jump directly behind ``test %rdi,%rdi`` is passed over for a later place if there is one: whoever
    takes it frees NULL. Behind any other jump, not every call would come by.
    """
    fallback: _Instruction | None = None
    for before, instruction in zip((None, *body), body, strict=False):
        if is_emulated(instruction.code):
            if "rsp" in needed or fallback is not None or not _tests_null(before, instruction):
                return instruction
            fallback = instruction
        elif instruction.target is not None or _leaves(instruction):
            return fallback
        if not needed.isdisjoint(instruction.written):
            return fallback
    return fallback


def _first_text(decoder: Any | None, code: bytes, vaddr: int) -> str:
    found = next(decoder.disasm_lite(code[:16], vaddr), None) if decoder is not None else None
    return f"{found[2]} {found[3]}".rstrip() if found else ""


def _tests_null(before: _Instruction | None, jump: _Instruction) -> bool:
    is_je = jump.code[:1] == b"\x74" or jump.code[:2] == b"\x0f\x84"
    return is_je and before is not None and before.code == b"\x48\x85\xff"


def _leaves(instruction: _Instruction) -> bool:
    verb = instruction.text.split(" ", 1)[0]
    return verb in ("jmp", "bnd", "notrack", "ret", "repz", "call", "ud2", "hlt", "int3", "syscall", "leave")


def _decode(decoder: Any, code: bytes, vaddr: int) -> tuple[list[_Instruction], set[int]]:
    """The first instructions in full, and the targets of all direct branches in ``code``."""
    branches: set[int] = set()
    for _, _, mnemonic, operands in decoder.disasm_lite(code, vaddr):
        if mnemonic.rpartition(" ")[2].startswith("j") and operands.startswith("0x"):
            branches.add(int(operands, 16))
    decoder.detail = True
    body: list[_Instruction] = []
    for found in decoder.disasm(code[:MAX_PROLOGUE], vaddr):
        text = f"{found.mnemonic} {found.op_str}".rstrip()
        is_branch = found.mnemonic.rpartition(" ")[2].startswith("j") and found.op_str.startswith("0x")
        target = int(found.op_str, 16) if is_branch else None
        names = {found.reg_name(number) for number in found.regs_access()[1]}
        written = frozenset(_ALIASES[name] for name in names if name in _ALIASES)
        body.append(_Instruction(found.address, bytes(found.bytes), text, written, target))
    return body, branches


def _has_symbol_between(image: ElfImage, start: int, end: int) -> bool:
    """True where another function begins between the entry and the probe: its calls would be counted, too."""
    starts, _ = image.functions
    return bisect_right(starts, start) < bisect_left(starts, end)
