"""Call frame instructions (DWARF 5, section 6.4) of x86-64, run into rules.

Only what a walk needs is followed: the CFA, rbp and the return address. Each run is linear in the length of the
instructions, whatever they hold; what cannot be decoded raises MalformedError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .rules import OFFSET_LIMIT, RBP_OFFSET_LIMIT, RULE_END, RULE_SIGNAL, Cfa, Rbp, Reason, encode, unsupported

REG_RBP, REG_RSP, REG_RETURN = 6, 7, 16
MAX_LEB_BYTES = 10
ADVANCE, OFFSET, RESTORE = 0x40, 0x80, 0xC0
# The signal frame's CFA: the interrupted rsp, as the kernel saved it in ucontext.
SIGNAL_RSP_OFFSET = 160


class MalformedError(Exception):
    """Bytes that are no call frame instructions; stays inside the parser."""


class Expression(NamedTuple):
    """One of the few location expressions that compilers emit: `kind` is "reg", "deref", "plt" or "other"."""

    kind: str
    register: int = 0
    offset: int = 0
    add: int = 0


class Place(NamedTuple):
    """Where a register's old value is: `kind` is "cfa" (at CFA + offset), "rbp" (at rbp + offset), ..."""

    kind: str
    offset: int = 0


UNDEFINED, ELSEWHERE, OTHER_EXPRESSION = Place("undefined"), Place("other"), Expression("other")


class State(NamedTuple):
    """The part of a row of the unwind table that is followed; a place that is None means unchanged."""

    cfa_register: int = REG_RSP
    cfa_offset: int = 8
    cfa_expression: Expression | None = None
    rbp: Place | None = None
    return_address: Place | None = None


class Cie(NamedTuple):
    """What an entry's functions share."""

    code_align: int
    data_align: int
    return_register: int
    pointer_encoding: int
    has_augmentation: bool
    is_signal: bool
    initial: State


class Program(NamedTuple):
    """What a function's instructions yield: (distance from its start, rule), ascending, and why rows are UNSUP."""

    rows: list[tuple[int, int]]
    reasons: list[Reason]


def uleb(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number and the offset after it."""
    value = shift = 0
    while shift < 7 * MAX_LEB_BYTES:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise MalformedError("number too long")


def sleb(data: bytes, at: int) -> tuple[int, int]:
    """A signed LEB128 number and the offset after it."""
    value, after = uleb(data, at)
    if data[after - 1] & 0x40:
        value -= 1 << 7 * (after - at)
    return value, after


def expression(code: bytes) -> Expression:
    """Recognise register + offset, *(register + offset) + add, and the PLT's; any other is OTHER_EXPRESSION."""
    if not code or not 0x70 <= code[0] <= 0x8F:
        return OTHER_EXPRESSION
    register = code[0] - 0x70
    offset, at = sleb(code, 1)
    rest = code[at:]
    if not rest:
        return Expression("reg", register, offset)
    if rest == b"\x06":
        return Expression("deref", register, offset)
    if rest[:2] == b"\x06\x23":
        add, at = uleb(rest, 2)
        if at == len(rest):
            return Expression("deref", register, offset, add)
    # breg7+8, breg16+0, lit15, and, litN, ge, lit3, shl, plus
    is_plt = register == REG_RSP and offset == 8 and rest[:4] == b"\x80\x00\x3f\x1a" and rest[5:] == b"\x2a\x33\x24\x22"
    if is_plt and 0x30 <= rest[4] <= 0x3F:
        return Expression("plt", add=rest[4] - 0x30)
    return OTHER_EXPRESSION


def rule_of(state: State, is_signal: bool) -> int:
    """The rule that says the same as the state, or UNSUP with the reason."""
    if state.return_address is not None and state.return_address.kind == "undefined":
        return RULE_END
    if is_signal:
        is_kernels = state.cfa_expression == Expression("deref", REG_RSP, SIGNAL_RSP_OFFSET)
        return RULE_SIGNAL if is_kernels else unsupported(Reason.SIGNAL_FRAME)
    if state.return_address is not None and state.return_address != Place("cfa", -8):
        return unsupported(Reason.RETURN_ADDRESS)
    kind, units = _cfa_rule(state)
    if kind is Cfa.UNSUP:
        return encode(kind, units)
    return encode(kind, units, *_rbp_rule(state.rbp))


def _cfa_rule(state: State) -> tuple[Cfa, int]:
    register, offset = state.cfa_register, state.cfa_offset
    found = state.cfa_expression
    if found is not None:
        if found.kind == "plt":
            return Cfa.PLT, found.add
        if found.kind == "deref":
            return _dereference(found)
        if found.kind != "reg":
            return Cfa.UNSUP, Reason.CFA_EXPRESSION
        register, offset = found.register, found.offset
    if register not in (REG_RBP, REG_RSP):
        return Cfa.UNSUP, Reason.CFA_REGISTER
    if offset & 7 or not 0 <= offset < OFFSET_LIMIT:
        return Cfa.UNSUP, Reason.CFA_OFFSET
    return (Cfa.RSP if register == REG_RSP else Cfa.RBP), offset >> 3


def _dereference(found: Expression) -> tuple[Cfa, int]:
    if (found.offset | found.add) & 7:
        return Cfa.UNSUP, Reason.CFA_EXPRESSION
    if found.register == REG_RBP and not found.add and -OFFSET_LIMIT // 2 <= found.offset < OFFSET_LIMIT // 2:
        return Cfa.DEREF_RBP, found.offset >> 3
    if found.register == REG_RSP and 0 <= found.offset < 8 << 12 and found.add < 8 << 7:
        return Cfa.DEREF_RSP, found.offset >> 3 | found.add >> 3 << 12
    return Cfa.UNSUP, Reason.CFA_EXPRESSION


def _rbp_rule(place: Place | None) -> tuple[Rbp, int]:
    if place is None:
        return Rbp.SAME, 0
    if place.kind not in ("cfa", "rbp") or place.offset & 7 or not -RBP_OFFSET_LIMIT <= place.offset < RBP_OFFSET_LIMIT:
        return Rbp.LOST, 0
    return (Rbp.CFA if place.kind == "cfa" else Rbp.RBP), place.offset >> 3


class Interpreter:
    """Runs instructions; one per image, as it remembers the rule of each state it has met."""

    def __init__(self) -> None:
        self._rules: dict[tuple[State, bool], int] = {}

    def initial_state(self, cie: Cie, code: bytes) -> State:
        """The state that a CIE's own instructions leave behind."""
        return self._run(cie, code)[1]

    def program(self, cie: Cie, code: bytes) -> Program:
        """The rows of a function; UNSUP all over where its instructions are malformed."""
        try:
            states = self._run(cie, code)[0]
        except (MalformedError, IndexError):
            return Program([(0, unsupported(Reason.BAD_INSTRUCTIONS))], [Reason.BAD_INSTRUCTIONS])
        rows: list[tuple[int, int]] = []
        reasons = []
        last = -1
        for distance, state in states:
            key = (state, cie.is_signal)
            rule = self._rules.get(key)
            if rule is None:
                rule = self._rules[key] = rule_of(state, cie.is_signal)
            if rule != last:
                rows.append((distance, rule))
                last = rule
                if rule & 15 == Cfa.UNSUP:
                    reasons.append(Reason(rule >> 13))
        return Program(rows, reasons)

    def _run(self, cie: Cie, code: bytes) -> tuple[list[tuple[int, State]], State]:
        """(distance, state) of each row, and the last state. The frequent instructions are decoded in place."""
        out: list[tuple[int, State]] = []
        saved: list[State] = []
        register, offset, found, rbp, back = cie.initial
        data_align, return_register, distance, at, end = cie.data_align, cie.return_register, 0, 0, len(code)
        while at < end:
            op = code[at]
            at += 1
            high, low = op & 0xC0, op & 0x3F
            if high == OFFSET:
                value, at = uleb(code, at)
                if low == REG_RBP:
                    rbp = Place("cfa", value * data_align)
                elif low == return_register:
                    back = Place("cfa", value * data_align)
                continue
            if high == RESTORE:
                if low == REG_RBP:
                    rbp = cie.initial.rbp
                elif low == return_register:
                    back = cie.initial.return_address
                continue
            if high == ADVANCE:
                advance = low
            elif op == 0x0E:  # def_cfa_offset
                offset, at = uleb(code, at)
                continue
            elif op in _ADVANCE_BYTES:
                size = _ADVANCE_BYTES[op]
                if at + size > end:
                    raise MalformedError("cut off")
                advance = int.from_bytes(code[at : at + size], "little")
                at += size
            else:
                state = State(register, offset, found, rbp, back)
                if op == 0x0A:  # remember_state
                    saved.append(state)
                elif op == 0x0B:  # restore_state
                    state = saved.pop() if saved else state
                else:
                    handler = _OPERATIONS.get(op)
                    if handler is None:
                        raise MalformedError(f"instruction {op:#x}")
                    state, at = handler(cie, state, code, at)
                register, offset, found, rbp, back = state
                continue
            if advance:
                out.append((distance, State(register, offset, found, rbp, back)))
                distance += advance * cie.code_align
        if at > end:
            raise MalformedError("cut off")
        last = State(register, offset, found, rbp, back)
        out.append((distance, last))
        return out, last


_ADVANCE_BYTES = {0x02: 1, 0x03: 2, 0x04: 4}
_Operation = Callable[[Cie, State, bytes, int], tuple[State, int]]


def _set_place(cie: Cie, state: State, register: int, place: Place | None) -> State:
    if register == REG_RBP:
        return state._replace(rbp=place)
    if register == cie.return_register:
        return state._replace(return_address=place)
    return state


def _nop(_cie: Cie, state: State, _code: bytes, at: int) -> tuple[State, int]:
    return state, at


def _skip_number(_cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    return state, uleb(code, at)[1]


def _offset_extended(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    value, at = uleb(code, at)
    return _set_place(cie, state, register, Place("cfa", value * cie.data_align)), at


def _offset_extended_sf(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    value, at = sleb(code, at)
    return _set_place(cie, state, register, Place("cfa", value * cie.data_align)), at


def _negative_offset_extended(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    value, at = uleb(code, at)
    return _set_place(cie, state, register, Place("cfa", -value * cie.data_align)), at


def _restore_extended(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    place = cie.initial.rbp if register == REG_RBP else cie.initial.return_address
    return _set_place(cie, state, register, place), at


def _undefined(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    return _set_place(cie, state, register, UNDEFINED), at


def _same_value(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    return _set_place(cie, state, register, None if register == REG_RBP else ELSEWHERE), at


def _in_register(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    _, at = uleb(code, at)
    return _set_place(cie, state, register, ELSEWHERE), at


def _value_offset(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    _, at = uleb(code, at)
    return _set_place(cie, state, register, ELSEWHERE), at


def _define_cfa(_cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    offset, at = uleb(code, at)
    return state._replace(cfa_register=register, cfa_offset=offset, cfa_expression=None), at


def _define_cfa_sf(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    value, at = sleb(code, at)
    return state._replace(cfa_register=register, cfa_offset=value * cie.data_align, cfa_expression=None), at


def _define_cfa_register(_cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    return state._replace(cfa_register=register, cfa_expression=None), at


def _define_cfa_offset_sf(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    value, at = sleb(code, at)
    return state._replace(cfa_offset=value * cie.data_align), at


def _block(code: bytes, at: int) -> tuple[bytes, int]:
    size, at = uleb(code, at)
    if size > len(code) - at:
        raise MalformedError("cut off")
    return code[at : at + size], at + size


def _define_cfa_expression(_cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    body, at = _block(code, at)
    return state._replace(cfa_expression=_read_expression(body)), at


def _at_expression(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    body, at = _block(code, at)
    found = _read_expression(body)
    place = Place("rbp", found.offset) if found.kind == "reg" and found.register == REG_RBP else ELSEWHERE
    return _set_place(cie, state, register, place), at


def _is_expression(cie: Cie, state: State, code: bytes, at: int) -> tuple[State, int]:
    register, at = uleb(code, at)
    _, at = _block(code, at)
    return _set_place(cie, state, register, ELSEWHERE), at


def _read_expression(body: bytes) -> Expression:
    try:
        return expression(body)
    except (MalformedError, IndexError):
        return OTHER_EXPRESSION


_OPERATIONS: dict[int, _Operation] = {
    0x00: _nop,
    0x05: _offset_extended,
    0x06: _restore_extended,
    0x07: _undefined,
    0x08: _same_value,
    0x09: _in_register,
    0x0C: _define_cfa,
    0x0D: _define_cfa_register,
    0x0F: _define_cfa_expression,
    0x10: _at_expression,
    0x11: _offset_extended_sf,
    0x12: _define_cfa_sf,
    0x13: _define_cfa_offset_sf,
    0x14: _value_offset,
    0x15: _value_offset,  # val_offset_sf: a number of the same length
    0x16: _is_expression,
    0x2E: _skip_number,  # GNU_args_size
    0x2F: _negative_offset_extended,
}
