r"""/proc/PID/smaps and maps as a ``VmaTable``: the quick reading, for processes with tens of thousands of VMAs.

A file is cut at ``\nVmFlags:``; each piece then is the flags of one block, the header of the next, and its fields.
In all blocks the fields have the same length and the same places, unless a number has more than eight digits, so that
a piece is divided from its end. Equal fields are kept once. Pieces of another form are read line by line.

The data comes in parts of 256 KiB, whose copies stay in the processor's cache. Without numpy: its import takes longer
(45-110 ms) than it would save (20 ms for 60,000 VMAs).
"""

from __future__ import annotations

import binascii
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from tracer.model.coded import Coded, Numbers
from tracer.procfs.block_layout import BlockFields, skeleton
from tracer.procfs.maps import HeaderParser
from tracer.procfs.smaps_fields import parse_flags
from tracer.procfs.vma_table import Attributes, VmaTable

PART = 256 << 10
_FLAGS = b"\nVmFlags:"
# A line with addresses of twelve digits, as all of user space has but the lowest and [vsyscall].
_DIGITS, _RANGE = 12, 25
_NO_RANGE = b"0" * _DIGITS + b"-" + b"0" * _DIGITS


def parse_smaps_table(parts: bytes | Iterable[bytes]) -> VmaTable:
    """The VMAs of an smaps file, whole or in parts of any size. A last block without any field is left out."""
    parser = _SmapsParser()
    for part in _parts(parts) if isinstance(parts, bytes) else parts:
        parser.feed(part)
    return parser.finish()


def parse_maps_table(data: bytes) -> VmaTable:
    """The VMAs of a maps file; lines that are cut off are left out."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    starts, ends, attributes, _ = parse_headers(lines)
    return VmaTable(starts, ends, attributes)


def parse_headers(lines: list[bytes]) -> tuple[list[int], list[int], Coded[Attributes], list[int] | None]:
    """Starts, ends and attributes of lines of maps, and the numbers of the lines taken (None: all of them)."""
    try:
        starts, ends, rests = _addresses(lines)
        numbers = Numbers[bytes]()
        ids = [numbers[rest] for rest in rests]
        return starts, ends, Coded(ids, [_attributes(rest) for rest in numbers]), None
    except ValueError:
        return _parse_each(lines)


class _SmapsParser:
    """Collects blocks: the header line of each, the number of its body (the fields' text), and the text of its flags.

    The flags of a block come with the next piece. ``_flags`` therefore begins with an entry of no block, and is as
    long as the other lists while the last block waits for its flags.
    """

    def __init__(self) -> None:
        self._unread: list[bytes] = [b"\n"]  # the first piece has no flags of a block before it
        self._headers: list[bytes] = []
        self._blocks: list[int] = []
        self._flags: list[bytes] = []
        self._bodies: Numbers[bytes] = Numbers()
        self._last_body = b""
        # What the usual bodies look like; which bodies were not compared with it.
        self._skeleton = b""
        self._unusual: set[int] = set()
        self._parse_header = HeaderParser()

    def feed(self, part: bytes) -> None:
        """Take the next part of the file."""
        self._unread.append(part)
        if _FLAGS in part:
            pieces = b"".join(self._unread).split(_FLAGS)
            self._unread = [pieces.pop()]
            self._add(pieces)

    def finish(self) -> VmaTable:
        """The table, when there is nothing more to come."""
        *pieces, rest = b"".join(self._unread).split(_FLAGS)
        if pieces:
            self._add(pieces)
        self._add_by_line(rest)
        if self._is_open():
            self._flags.append(b"")
        if self._blocks and not self._last_body:  # cut off before its first field
            del self._headers[-1], self._blocks[-1], self._flags[-1]
        starts, ends, attributes, rows = parse_headers(self._headers)
        texts = Numbers[bytes]()
        flags = [texts[text] for text in self._flags[1:]]
        blocks = self._blocks
        if rows is not None:
            blocks, flags = [blocks[row] for row in rows], [flags[row] for row in rows]
        bodies = list(self._bodies)
        fields = BlockFields(bodies, [n for n in self._unusual if skeleton(bodies[n]) != self._skeleton])
        return VmaTable(starts, ends, attributes, fields, blocks, Coded(flags, list(map(parse_flags, texts))))

    def _is_open(self) -> bool:
        return len(self._flags) == len(self._blocks)

    def _add(self, pieces: list[bytes]) -> None:
        if not self._skeleton:
            self._learn(skeleton(_body(pieces[0])))
        length, bodies = len(self._skeleton), self._bodies
        if length and self._is_open():
            before = len(bodies)
            blocks = [bodies[piece[-length:]] for piece in pieces]
            heads = [piece[:-length] for piece in pieces]
            if self._are_regular(heads, before):
                lines = b"\n".join(heads).split(b"\n")
                self._flags += lines[0::2]
                self._headers += lines[1::2]
                self._blocks += blocks
                self._last_body = pieces[-1][-length:]
                return
            while len(bodies) > before:
                bodies.popitem()
        self._learn(_commonest_skeleton(pieces))
        for piece in pieces:
            self._add_by_line(piece)

    def _learn(self, usual: bytes) -> None:
        if usual != self._skeleton:
            self._skeleton = usual
            self._unusual = set(range(len(self._bodies)))

    def _are_regular(self, heads: list[bytes], before: int) -> bool:
        """True where each head is two lines, and the bodies that came up for the first time have the usual form."""
        new = islice(reversed(self._bodies), len(self._bodies) - before)
        return {head.count(b"\n") for head in heads} == {1} and set(map(skeleton, new)) <= {self._skeleton}

    def _add_by_line(self, piece: bytes) -> None:
        """A piece of any form: fields may follow the flags, a block may have no flags, there may be several blocks."""
        flags, *lines = piece.split(b"\n")
        if self._is_open():
            self._flags.append(flags)
        else:  # a block with two lines of flags
            self._flags[-1] += b" " + flags
        body = b""
        header: bytes | None = None
        for line in lines:
            if self._parse_header(line) is None:
                body += b"\n" + line if line else b""
                continue
            self._end_block(header, body)
            header, body = line, b""
        self._end_block(header, body)

    def _end_block(self, header: bytes | None, body: bytes) -> None:
        """Keep a block, or, without a header, what belongs to the block before."""
        if header is not None:
            if self._is_open():
                self._flags.append(b"")
            self._headers.append(header)
            self._blocks.append(self._number(body))
            self._last_body = body
        elif body and self._blocks:
            self._last_body += body
            self._blocks[-1] = self._number(self._last_body)

    def _number(self, body: bytes) -> int:
        """The number of a body of any form."""
        before = len(self._bodies)
        number = self._bodies[body]
        if number == before:
            self._unusual.add(number)
        return number


def _body(piece: bytes) -> bytes:
    """What follows the line of flags and the header."""
    end_of_header = piece.find(b"\n", piece.find(b"\n") + 1)
    return piece[end_of_header:] if end_of_header > 0 else b""


def _commonest_skeleton(pieces: list[bytes]) -> bytes:
    lengths = Counter(len(_body(piece)) for piece in pieces)
    length = lengths.most_common(1)[0][0]
    return skeleton(next(body for piece in pieces if len(body := _body(piece)) == length))


def _parts(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PART):
        yield data[start : start + PART]


def _addresses(lines: list[bytes]) -> tuple[list[int], list[int], list[bytes]]:
    """Addresses, and what follows them, of header lines; from the digits of all lines at once. Raises ValueError."""
    ranges = [line[:_RANGE] for line in lines]
    rests = [line[_RANGE:] for line in lines]
    # The characters at 12 and 25 show whether a line has addresses of the usual length.
    odd = [row for row, line in enumerate(lines) if line[_DIGITS : _RANGE + 1 : _RANGE - _DIGITS] != b"- "]
    for row in odd:
        ranges[row], (_, _, rests[row]) = _NO_RANGE, lines[row].partition(b" ")
    digits = b"0000".join([b"", *ranges]).replace(b"-", b"0000")
    numbers = array("Q", binascii.unhexlify(digits))
    if len(numbers) != 2 * len(lines):
        raise ValueError("a dash amid digits")
    if sys.byteorder == "little":
        numbers.byteswap()
    starts, ends = numbers[0::2].tolist(), numbers[1::2].tolist()
    for row in odd:
        start, _, end = lines[row].partition(b" ")[0].partition(b"-")
        starts[row], ends[row] = int(start, 16), int(end, 16)
    return starts, ends, rests


def _attributes(rest: bytes) -> Attributes:
    perms, offset, device, inode, *path = rest.split(None, 4)
    return Attributes(_text(perms), int(offset, 16), _text(device), int(inode), path[0] if path else b"")


def _text(word: bytes) -> str:
    return word.decode("ascii", "backslashreplace")


def _parse_each(lines: list[bytes]) -> tuple[list[int], list[int], Coded[Attributes], list[int]]:
    parse = HeaderParser()
    rows = [(row, vma) for row, line in enumerate(lines) if (vma := parse(line)) is not None]
    attributes = Coded.of([Attributes(v.perms, v.offset, v.device, v.inode, v.path) for _, v in rows])
    return [vma.start for _, vma in rows], [vma.end for _, vma in rows], attributes, [row for row, _ in rows]
