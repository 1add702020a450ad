"""Protocol buffers on the wire: as much as it takes to write messages of integers, texts and messages.

The encoding is fixed for good (https://protobuf.dev/programming-guides/encoding/), and these few functions spare every
installation of memtrace a library of several megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable

_VARINT, _LENGTH = 0, 2
_MASK = (1 << 64) - 1
_SMALL = tuple(bytes([n]) for n in range(0x80))


def varint(value: int) -> bytes:
    """An integer of 64 bits in seven bits a byte, lowest first; a negative one as its two's complement."""
    if 0 <= value < 0x80:
        return _SMALL[value]
    value &= _MASK
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integer(field: int, value: int) -> bytes:
    """An integer or a truth value; nothing for 0, which is what a reader takes an absent field for."""
    return varint(field << 3 | _VARINT) + varint(value) if value else b""


def message(field: int, body: bytes) -> bytes:
    """A message, or bytes; also an empty one."""
    return varint(field << 3 | _LENGTH) + varint(len(body)) + body


def text(field: int, value: str) -> bytes:
    """A text; what is no Unicode (a surrogate) becomes a question mark."""
    return message(field, value.encode("utf-8", "replace"))


def integers(field: int, values: Iterable[int]) -> bytes:
    """A repeated integer, packed; nothing where there are none."""
    body = b"".join(map(varint, values))
    return message(field, body) if body else b""
