r"""/proc/PID/smaps and maps as a ``VmaTable``: the quick reading, for processes with tens of thousands of VMAs.

A file is cut at ``\nVmFlags:``; each piece then is the flags of one block, the header of the next, and its fields.
In all blocks the fields have the same length and the same places, unless a number has more than eight digits, so that
a piece is divided from its end. Equal fields are kept once. Pieces of another form are read line by line.

The data comes in parts of 64 KiB, whose copies stay in the processor's cache. Without numpy: its import takes longer
(45-110 ms) than it would save (20 ms for 60,000 VMAs).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from tracer.model.coded import Coded, Numbers
from tracer.procfs.block_layout import BlockFields, skeleton
from tracer.procfs.header_columns import HeaderColumns
from tracer.procfs.smaps_fields import parse_flags
from tracer.procfs.vma_table import VmaTable

# Below malloc's threshold of mmap (128 KiB): else each part costs a page fault for each page.
PART = 64 << 10
_FLAGS = b"\nVmFlags:"
# More than this is not gathered of a block that comes in pieces: no kernel writes one.
_MAX_ODD = 64 << 10


def parse_smaps_table(parts: bytes | Iterable[bytes]) -> VmaTable:
    """The VMAs of an smaps file, whole or in parts of any size. A last block without any field is left out."""
    parser = _SmapsParser()
    for part in _parts(parts) if isinstance(parts, bytes) else parts:
        parser.feed(part)
    return parser.finish()


def parse_maps_table(data: bytes) -> VmaTable:
    """The VMAs of a maps file; lines that are cut off are left out."""
    headers = HeaderColumns()
    lines = data.removesuffix(b"\n").split(b"\n")
    try:
        headers.add(lines)
    except ValueError:
        for line in lines:
            with contextlib.suppress(ValueError):
                headers.add([line])
    return VmaTable(headers.starts, headers.ends, headers.attributes())


class _SmapsParser:
    """Collects blocks: the header of each, the number of its body (the fields' text), and the number of its flags.

    The flags of a block come with the next piece. ``_flags`` therefore begins with an entry of no block, and is as
    long as the other lists while the last block waits for its flags.
    """

    def __init__(self) -> None:
        self._unread: list[bytes] = [b"\n"]  # the first piece has no flags of a block before it
        self._headers = HeaderColumns()
        self._blocks: list[int] = []
        self._flags: list[int] = []
        self._flag_texts: Numbers[bytes] = Numbers()
        self._bodies: Numbers[bytes] = Numbers()
        self._last_body = b""
        self._last_flags = b""
        # What the usual bodies look like; which bodies were not compared with it.
        self._skeleton = b""
        self._unusual: set[int] = set()

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
            self._flags.append(self._flag_texts[b""])
        if self._blocks and not self._last_body:  # cut off before its first field
            self._headers.drop_last()
            del self._blocks[-1], self._flags[-1]
        bodies = list(self._bodies)
        fields = BlockFields(bodies, [n for n in self._unusual if skeleton(bodies[n]) != self._skeleton])
        flags = Coded(self._flags[1:], list(map(parse_flags, self._flag_texts)))
        return VmaTable(
            self._headers.starts, self._headers.ends, self._headers.attributes(), fields, self._blocks, flags
        )

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
            if self._are_regular(heads, before) and self._take(heads):
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

    def _take(self, heads: list[bytes]) -> bool:
        """Keep flags and headers; False, with nothing kept, where something is no header."""
        lines = b"\n".join(heads).split(b"\n")
        try:
            self._headers.add(lines[1::2])
        except ValueError:
            return False
        texts = self._flag_texts
        self._flags += [texts[text] for text in lines[0::2]]
        return True

    def _are_regular(self, heads: list[bytes], before: int) -> bool:
        """True where each head is two lines, and the bodies that came up for the first time have the usual form."""
        new = islice(reversed(self._bodies), len(self._bodies) - before)
        return {head.count(b"\n") for head in heads} == {1} and set(map(skeleton, new)) <= {self._skeleton}

    def _add_by_line(self, piece: bytes) -> None:
        """A piece of any form: fields may follow the flags, a block may have no flags, there may be several blocks."""
        flags, *lines = piece.split(b"\n")
        if self._is_open():
            self._flags.append(self._flag_texts[flags])
            self._last_flags = flags
        elif len(self._last_flags) < _MAX_ODD:  # a block with two lines of flags
            self._last_flags += b" " + flags
            self._flags[-1] = self._flag_texts[self._last_flags]
        body: list[bytes] = []
        header: bytes | None = None
        for line in lines:
            if _is_header(line):
                self._end_block(header, body)
                header, body = line, []
            elif line:
                body.append(line)
        self._end_block(header, body)

    def _end_block(self, header: bytes | None, lines: list[bytes]) -> None:
        """Keep a block, or, without a header, what belongs to the block before."""
        body = b"".join([b"\n" + line for line in lines])
        if header is not None:
            if self._is_open():
                self._flags.append(self._flag_texts[b""])
            self._headers.add([header])
            self._blocks.append(self._number(body))
            self._last_body = body
        elif body and self._blocks and len(self._last_body) < _MAX_ODD:
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


def _is_header(line: bytes) -> bool:
    try:
        HeaderColumns().add([line])
    except ValueError:
        return False
    return True
