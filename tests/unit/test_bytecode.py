"""What is kept of compiled BPF programs comes back as it was, or not at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.probes.bytecode import Bytecode, MapShape, pack, unpack

MAPS = {"first": MapShape(1, 4, 8, 1, 1), "second": MapShape(27, 0, 0, 4096, 0)}


def constant(value: int, *, register: int = 1, source: int = 0) -> bytes:
    """``lddw``: two slots, of which the second holds the upper half."""
    low, high = value & 0xFFFFFFFF, value >> 32
    return struct.pack("<BBhI", 0x18, source << 4 | register, 0, low) + struct.pack("<BBhI", 0, 0, 0, high)


def a_map(number: int) -> bytes:
    return constant(number, source=1)


EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)
PROGRAMS = {"one": a_map(1) + constant(0x1_0000_0001) + a_map(0) + EXIT, "two": EXIT}
BYTECODE = Bytecode(MAPS, PROGRAMS)


def test_it_comes_back_as_it_was() -> None:
    assert unpack(pack(BYTECODE)) == BYTECODE


def test_maps_are_put_in_and_nothing_else_is_touched() -> None:
    linked = BYTECODE.linked("one", {"first": 70, "second": 90})
    assert linked == a_map(90) + constant(0x1_0000_0001) + a_map(70) + EXIT
    assert BYTECODE.linked("two", {"first": 70, "second": 90}) == EXIT


def test_what_looks_like_a_map_in_a_constants_upper_half_is_none() -> None:
    # The second slot of a constant may hold any bits, also those of a load.
    upper = 0x18 | 0x11 << 8
    code = struct.pack("<BBhI", 0x18, 1, 0, 5) + struct.pack("<BBhI", 0x18, 0x11, 0, upper) + EXIT
    assert Bytecode(MAPS, {"odd": code}).linked("odd", {"first": 70, "second": 90}) == code


@pytest.mark.parametrize("size", [0, 1, 27, 28, 100])
def test_a_file_that_was_cut_off_is_not_believed(size: int) -> None:
    assert unpack(pack(BYTECODE)[:size]) is None


@given(st.data())
def test_no_damaged_byte_goes_unseen(data: st.DataObject) -> None:
    whole = bytearray(pack(BYTECODE))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    assert unpack(bytes(whole)) is None


@given(st.binary(max_size=200))
def test_foreign_files(content: bytes) -> None:
    assert unpack(content) is None
