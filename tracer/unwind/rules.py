"""The coding of unwind rules, as bpf/unwind.h states it: how a caller's registers follow from a frame's.

A row is a u64: image-relative address << 32 | rule; it holds from its address up to the next row's.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Cfa(IntEnum):
    """How the canonical frame address follows from the registers (bits 0 to 3 of a rule)."""

    NONE = 0
    RSP = 1
    RBP = 2
    PLT = 3
    SIGNAL = 4
    DEREF_RBP = 5
    END = 6
    UNSUP = 7
    DEREF_RSP = 8
    PENDING = 9


class Rbp(IntEnum):
    """Where the caller's rbp is (bits 4 and 5)."""

    SAME = 0
    CFA = 1
    RBP = 2
    LOST = 3


class Reason(IntEnum):
    """Why a row is UNSUP: it stands in the row's offset field."""

    CFA_REGISTER = 1
    CFA_EXPRESSION = 2
    CFA_OFFSET = 3
    RETURN_ADDRESS = 4
    SIGNAL_FRAME = 5
    BAD_INSTRUCTIONS = 6


class Rule(NamedTuple):
    """A rule taken apart; offsets in bytes."""

    cfa: Cfa
    offset: int
    rbp: Rbp
    rbp_offset: int


OFFSET_LIMIT = 8 << 19
RBP_OFFSET_LIMIT = 8 << 6


def encode(cfa: int, units: int = 0, rbp: int = 0, rbp_units: int = 0) -> int:
    """The rule; `units` and `rbp_units` are offsets in units of 8 bytes (raw field contents)."""
    return cfa | rbp << 4 | (rbp_units & 0x7F) << 6 | (units & 0x7FFFF) << 13


def decode(rule: int) -> Rule:
    """What `encode` put together; DEREF_RBP's offset is signed, DEREF_RSP's is left as its two packed fields."""
    cfa = Cfa(rule & 15)
    units = rule >> 13 & 0x7FFFF
    if cfa is Cfa.DEREF_RBP and units >= 1 << 18:
        units -= 1 << 19
    rbp_units = rule >> 6 & 0x7F
    if rbp_units >= 1 << 6:
        rbp_units -= 1 << 7
    return Rule(cfa, units * 8, Rbp(rule >> 4 & 3), rbp_units * 8)


RULE_NONE = encode(Cfa.NONE)
RULE_END = encode(Cfa.END)
RULE_SIGNAL = encode(Cfa.SIGNAL)
RULE_PENDING = encode(Cfa.PENDING)
# The frame-pointer walk that NONE means, as the rule of a whole mapping.
RULE_FRAME_POINTER = RULE_NONE
# CPython's perf trampoline (`sub $8,%rsp; call *%rcx; ...`) keeps no frame pointer.
RULE_PERF_TRAMPOLINE = encode(Cfa.RSP, 2)


def unsupported(reason: Reason) -> int:
    """The rule of a place whose unwind information has no coding here."""
    return encode(Cfa.UNSUP, reason)
